"""Compiled programs are kept where processes share them, whatever befalls the disk."""

import contextlib
import os
import subprocess
import threading
import time

import pytest

from dresnet_jax.training import compilation, compilation_cache
from tests.conftest import run_python, start_python

# Compiles programs, one for each size, which are kept however fast they compile; every
# warning is on standard error.
PROGRAM = """
import jax, jax.numpy as jnp
from dresnet_jax.training import compilation, compilation_cache
compilation_cache.use({directory!r})
f = jax.jit(lambda x: jnp.sin(x) @ x)
for size in {sizes}:
    with compilation.announced("a program"):
        f.lower(jax.ShapeDtypeStruct((size, size), jnp.float32)).compile()
print("end")
"""


def compile_in(directory, sizes=(8,)):
    return PROGRAM.format(directory=str(directory), sizes=sizes)


def entries(directory):
    return [path for path in directory.rglob("*") if path.is_file()]


def warnings_of(errors):
    lines = errors.splitlines()
    return [line for line in lines if not line.startswith(("compil", "read from"))]


def test_a_program_is_read_by_the_next_process(tmp_path):
    for how in ("compiled: ", "read from the compilation cache: "):
        code, output, errors = run_python("-c", compile_in(tmp_path / "cache"))
        assert (code, output) == (0, "end\n"), errors
        first, second = errors.splitlines()
        assert first == "compiling a program ..."
        assert second.startswith(how + "a program, in ")


def test_processes_that_fill_one_cache_at_once(tmp_path):
    directory = tmp_path / "cache"
    processes = [start_python("-c", compile_in(directory)) for _ in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=100)
        assert (process.returncode, output) == (0, "end\n"), errors
        assert not warnings_of(errors)
    (entry,) = entries(directory)
    assert entry.name.endswith("-cache"), "no half-written file is left"


def test_damaged_entries_are_compiled_again_with_one_warning(tmp_path):
    """One that was cut off, one that was changed, and one that was emptied."""
    program = compile_in(tmp_path / "cache", sizes=(8, 9, 10))
    assert run_python("-c", program)[0] == 0
    cut, changed, emptied = entries(tmp_path / "cache")
    cut.write_bytes(cut.read_bytes()[:-9])
    whole = changed.read_bytes()
    changed.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    emptied.write_bytes(b"")
    code, output, errors = run_python("-c", program)
    assert (code, output) == (0, "end\n"), errors
    (warning,) = warnings_of(errors)
    assert "is damaged, and is compiled again" in warning
    assert any(str(entry) in warning for entry in (cut, changed, emptied))
    assert errors.count("\ncompiled: a program") == 3
    # They have been mended.
    _, _, errors = run_python("-c", program)
    assert not warnings_of(errors)
    assert errors.count("read from the compilation cache: a program") == 3


@contextlib.contextmanager
def disk(directory, *options):
    """A small disk of its own."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", directory]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a disk, and not everywhere")
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def test_a_full_disk_is_one_warning(tmp_path):
    directory = tmp_path / "full"
    with disk(directory, "size=16k"):
        (directory / "fill").write_bytes(bytes(16 * 1024 - 4096))
        program = compile_in(directory, sizes=(8, 9))
        code, output, errors = run_python("-c", program)
        assert (code, output) == (0, "end\n"), errors
        (warning,) = warnings_of(errors)
        assert "Compiled programs are not kept" in warning
        assert "No space left on device" in warning
        names = [path.name for path in entries(directory)]
        assert all(name.endswith(("fill", "-cache")) for name in names), names


def test_a_read_only_cache_is_read_and_one_warning(tmp_path):
    directory = tmp_path / "read_only"
    with disk(directory, "size=1m"):
        assert run_python("-c", compile_in(directory))[0] == 0
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        program = compile_in(directory, sizes=(8, 9))
        code, output, errors = run_python("-c", program)
        assert (code, output) == (0, "end\n"), errors
        (warning,) = warnings_of(errors)
        assert "read-only file system" in warning
        assert "read from the compilation cache: a program" in errors


def test_a_place_that_cannot_be_made_is_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    directory = tmp_path / "file" / "cache"
    code, output, errors = run_python("-c", compile_in(directory))
    assert (code, output) == (0, "end\n"), errors
    (warning,) = warnings_of(errors)
    assert "Not a directory" in warning


def test_another_cpus_entries_are_not_used(monkeypatch, tmp_path):
    assert compilation_cache.cpu_features() == compilation_cache.cpu_features()
    here = compilation_cache.cpu_features()
    (tmp_path / "cpuinfo").write_text("flags : fpu sse2\nmodel : 1\n")
    monkeypatch.setattr(compilation_cache, "_CPU_INFO", tmp_path / "cpuinfo")
    assert compilation_cache.cpu_features() != here


def test_where_programs_are_kept(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/of/jax")
    assert str(compilation_cache.default_directory()) == "/of/jax"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert str(compilation_cache.default_directory()) == "/caches/dresnet_jax/xla"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    expected = "/home/someone/.cache/dresnet_jax/xla"
    assert str(compilation_cache.default_directory()) == expected


def test_off_keeps_nothing(tmp_path):
    settings = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    code, _, errors = run_python("-c", compile_in("off"), env=settings)
    assert code == 0, errors
    assert not entries(tmp_path)


def test_the_clock_stands_still_while_this_thread_compiles():
    def compile_for_a_while(result):
        before = compilation.clock()
        with compilation.announced("nothing"):
            time.sleep(0.2)
        result.append(compilation.clock() - before)

    before, result = compilation.clock(), []
    thread = threading.Thread(target=compile_for_a_while, args=[result])
    thread.start()
    thread.join()
    assert result[0] < 0.1
    assert compilation.clock() - before >= 0.2
