"""`dresnet` calls the commands, lists what there is, and completes its words."""

import contextlib
import io
import os
import pty
import shutil
import subprocess
import sys

import pytest

from dresnet_jax import __main__ as program
from dresnet_jax import commands
from dresnet_jax.commands import config_files
from dresnet_jax.models import zoo
from tests.conftest import ROOT, run_command


def called(*words):
    """(exit code, standard output, standard error) of `dresnet` in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = program.run(["dresnet", *words])
    return code, output.getvalue(), errors.getvalue()


def test_every_command_is_listed_with_what_it_does():
    files = (ROOT / "dresnet_jax" / "commands").glob("*.py")
    own = {path.stem for path in files if "= cli.Command(" in path.read_text()}
    assert set(commands.COMMANDS) == own
    code, output, _ = called("--help")
    assert (code, output) == (0, called()[1])
    for name in commands.COMMANDS:
        assert f"\n    {name} " in output


def test_a_command_is_the_one_of_its_module():
    words = ("--config=digits", "--no_compile", "--json")
    code, output, errors = called("plan", *words)
    assert code == 0, errors
    assert output == run_command("plan", *words)[1]


def test_unknown_commands_are_one_line():
    code, output, errors = called("trian")
    assert (code, output) == (2, "")
    assert errors.startswith("error: Unknown command 'trian'. Did you mean 'train'?")
    assert errors.count("\n") == 1


def test_configs_go_by_name_or_path_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", ROOT / "configs" / "digits.py"):
        code, _, errors = called("plan", f"--config={name}", "--no_compile")
        assert code == 0, errors
    # A file of that name here goes before a name.
    (tmp_path / "digits").write_text("def get_config():\n    return 1\n")
    code, _, errors = called("plan", "--config=digits", "--no_compile")
    assert (code, "get_config() returns no ConfigDict" in errors) == (2, True)


def test_names_are_listed():
    code, output, _ = called("configs")
    names = [line.split()[0] for line in output.splitlines()]
    assert (code, names) == (0, config_files.shipped_names())
    assert {"digits", "folder", "compare/digits"} <= set(names)
    assert "compare/common" not in names
    assert called("configs", "compare/d*", "mn*")[1].count("\n") == 3
    assert called("models")[1].split() == sorted(zoo.MODELS)
    assert called("models", "dresnet5?")[1].split() == ["dresnet50", "dresnet56"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dresnet tr", ["train"]),
        ("dresnet train --config=di", ["--config=digits"]),
        ("dresnet compare --config=deep --config.base.mo", ["--config.base.model."]),
        ("dresnet train --config.model.na", ["--config.model.name="]),
        ("dresnet evaluate --split=t", ["--split=test", "--split=train"]),
        ("dresnet train --overw", ["--overwrite"]),
        ("dresnet nothing --", []),
        ("dresnet train --config=nothing --config.see", ["--config.seed="]),
    ],
)
def test_words_are_completed(line, expected):
    code, output, _ = called("completion", "bash", f"--line={line}")
    assert (code, output.splitlines()) == (0, expected)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_tab_completes_in_bash():
    """In a terminal, since bash takes the = for the end of a word."""
    terminal, end = pty.openpty()
    program = f"{sys.executable} -m dresnet_jax"
    bash = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), end),
        cwd=ROOT,
        env=os.environ | {"TERM": "dumb", "INPUTRC": "/dev/null"},
        start_new_session=True,
    )
    os.close(end)
    to_start = "\x01"
    lines = [
        f'dresnet() {{ {program} "$@"; }}; eval "$(dresnet completion bash)"',
        f"dresnet tr\t--config=di\t--config.mod\tna\tx{to_start}echo ",
        "exit",
    ]
    os.write(terminal, "".join(f"{line}\n" for line in lines).encode())
    output = b""
    with contextlib.suppress(OSError):  # The terminal is closed.
        while data := os.read(terminal, 1000):
            output += data
    assert bash.wait() == 0
    assert "\ndresnet train --config=digits --config.model.name=x\r" in output.decode()
