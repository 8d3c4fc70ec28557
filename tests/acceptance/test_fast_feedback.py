"""Commands start at once, and compile as little as they must.

Bounds on times are for 2 idle cores, and are among the slow tests.
"""

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dresnet_jax.commands import COMMANDS
from tests.acceptance.small_run import start_processes_of
from tests.conftest import ROOT, SMALL, run_process, run_python

HEAVY = ("jax", "flax", "numpy", "matplotlib", "sklearn", "tensorboardX", "scipy")

# Calls commands in turn, and says after each which heavy packages are there.
LIGHT = """
import contextlib, importlib, io, json, sys
found = {{}}
for words in {calls!r}:
    module = importlib.import_module("dresnet_jax.commands." + words[0])
    with contextlib.redirect_stdout(io.StringIO()), \\
            contextlib.redirect_stderr(io.StringIO()) as errors:
        code = module.command.run(words)
    heavy = [name for name in {heavy!r} if name in sys.modules]
    found[" ".join(words)] = code, heavy, errors.getvalue()
print(json.dumps(found))
"""


def light(calls):
    code, output, errors = run_python("-c", LIGHT.format(calls=calls, heavy=HEAVY))
    assert code == 0, errors
    return json.loads(output)


def test_output_that_nobody_reads_is_no_traceback():
    program = f"{sys.executable} -m dresnet_jax.train --help | sleep 0"
    result = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True)
    assert not result.stderr


def test_help_and_misspelt_flags_import_nothing_heavy():
    calls = [[name, flag] for name in COMMANDS for flag in ("--help", "--jsn")]
    for words, (code, heavy, errors) in light(calls).items():
        assert not heavy, words
        assert code == (0 if words.endswith("help") else 2)
        assert errors.startswith("error: Unknown flag 'jsn'.") or code == 0
        assert errors.count("\n") == (code != 0)


def test_misspelt_fields_and_wrong_flags_import_nothing_heavy():
    config = "--config=configs/digits.py"
    calls = [
        *(["train", config, f"--config.{field}=1"] for field in ("modle.name", "sede")),
        ["train", config, "--config.seed=many"],
        ["train", config, "--workdir=x", "--profile=5:1"],
        ["plan", config, "--sweep=8"],
        ["plan", config, "--target=v5e:2x2", "--sweep=x"],
        ["benchmark", "conditional", "--rates=most"],
        ["benchmark", "conections"],
        ["preview", config, "--out=x.jpg"],
        ["analyze", "graph", "--out=x.png"],
        ["prune", "--workdir=x", "--to=y", "--keep=1", "--threshold=1"],
        ["prune", "--workdir=x", "--to=y", "--max_loss=2"],
        ["evaluate", "--workdir=x", "--confidence=trust"],
        ["convert", "--workdir=x"],
        ["prepare", "--dataset=cifar"],
        ["compare", config, "--workdir=x"],
    ]
    for words, (code, heavy, errors) in light(calls).items():
        assert code == 2, words
        assert not heavy, words
        assert errors.startswith("error: "), words
        assert errors.count("\n") == 1, words


def test_a_run_says_what_it_compiles_and_whence_it_came(tmp_path):
    """Before and after each compilation, and speeds that leave it out."""
    arguments = (
        *(*SMALL, "--config.train.num_steps=3"),
        f"--compilation_cache={tmp_path / 'cache'}",
    )
    for number, how in enumerate(("compiled", "read from the compilation cache")):
        directory = tmp_path / str(number)
        start = time.monotonic()
        code, output, errors = run_process(
            "train", *arguments, f"--workdir={directory}"
        )
        wall = time.monotonic() - start
        assert code == 0, errors
        lines = [line for line in errors.splitlines() if "WARNING" not in line]
        whats = ("the initialisation", "the training step", "the evaluation")
        assert lines[::2] == [f"compiling {what} ..." for what in whats]
        for line, what in zip(lines[1::2], whats, strict=True):
            assert re.fullmatch(rf"{how}: {what}, in \d+\.\d s", line)
        first = json.loads((directory / "metrics.jsonl").read_text().splitlines()[1])
        compilation = float(lines[3].split()[-2])
        assert number or first["step_seconds"] < compilation < wall
        assert re.search(r"^step      1 .*  left 00:\d\d$", output, re.MULTILINE)


STATE = """
import hashlib, os, sys, jax, numpy as np
from jax.experimental import multihost_utils
from configs import digits
from dresnet_jax.training import experiment, processes
processes.join(*{coordinates}, 60, os.environ)
config = digits.get_config()
config.model.width = 16
config.model.blocks_per_stage = (1, 1, 1)
config.sharding.fsdp = {fsdp}
state = experiment.build(config).create_state()
digest = hashlib.sha256()
for path, leaf in jax.tree.leaves_with_path(state.params):
    whole = multihost_utils.process_allgather(leaf, tiled=True)
    digest.update(jax.tree_util.keystr(path).encode() + np.asarray(whole).tobytes())
print(digest.hexdigest())
"""


def initial(processes, devices, fsdp):
    """The digest of the initial parameters, as each process has it."""
    result = start_processes_of(
        processes,
        lambda coordinates: ("-c", STATE.format(coordinates=coordinates, fsdp=fsdp)),
        devices=devices,
    )
    outputs = [process.communicate(timeout=300) for process in result]
    for process, (_, errors) in zip(result, outputs, strict=True):
        assert process.returncode == 0, errors
    # Gloo prints lines of its own before.
    return {output.splitlines()[-1] for output, _ in outputs}


def test_initial_parameters_are_the_same_bits_on_every_layout():
    (digest,) = initial(1, 1, fsdp=1)
    for layout in ((1, 8, 1), (1, 8, 8), (2, 1, 1), (2, 4, 8)):
        processes, devices, fsdp = layout
        assert initial(processes, devices, fsdp=fsdp) == {digest}, layout
    print(f"\nparameters of every layout: {digest[:16]}")


def seconds_of(arguments, *, cpu=False, env=None):
    """Wall or CPU seconds of a process that must end well, or with a user's error."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""} | (env or {}),
        capture_output=True,
        text=True,
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (0, 2), done.stderr
    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return used if cpu else wall


@pytest.mark.slow
def test_help_and_errors_are_answered_at_once():
    slowest = 0.0
    for name in COMMANDS:
        command = ["-m", "dresnet_jax", name, "--help"]
        seconds = statistics.median(seconds_of(command) for _ in range(3))
        slowest = max(slowest, seconds)
        print(f"\n--help of {name}: {seconds:.2f} s", end="")
        assert seconds <= 0.7
    for word in ("--workdri=x", "--config.modle.name=x"):
        command = ["-m", "dresnet_jax.train", "--config=configs/digits.py", word]
        seconds = statistics.median(seconds_of(command) for _ in range(3))
        print(f"\n{word}: {seconds:.2f} s", end="")
        assert seconds <= 1.5


# What `train` imports once its flags are checked is imported here too.
WHOLE = (
    "import dresnet_jax.commands.train; from dresnet_jax.costs import chips; "
    "from dresnet_jax.figures import run; from dresnet_jax.training import loop; "
    "from dresnet_jax.structure.growth import events, training"
)
PARTS = "import jax, flax.linen, optax, orbax.checkpoint"


@pytest.mark.slow
def test_train_imports_little_more_than_its_libraries():
    train = "import dresnet_jax.commands.train"
    programs = {"train": train, "all of it": WHOLE, "parts": PARTS}
    result = {name: [] for name in programs}
    for _ in range(7):
        for name, program in programs.items():
            result[name].append(seconds_of(["-c", program]))
    medians = {name: statistics.median(times) for name, times in result.items()}
    for name in ("train", "all of it"):
        ratios = [a / b for a, b in zip(result[name], result["parts"], strict=True)]
        print(
            f"\nimport of {name}: {medians[name]:.2f} s, "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"times that of jax, flax, optax and orbax, {medians['parts']:.2f} s"
        )
    assert medians["train"] <= 1.3 * medians["parts"]


COMPILE = """
import resource, jax
from configs import digits
from dresnet_jax.training import experiment
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
parts = experiment.build(digits.get_config())
jax.block_until_ready(jax.numpy.zeros(3) + 1)
start = cpu()
jax.block_until_ready(parts.create_state())
middle = cpu()
parts.compile_train_step()
print(middle - start, cpu() - middle)
"""


@pytest.mark.slow
def test_initialisation_compiles_in_less_time_than_the_step():
    settings = {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    code, output, errors = run_python("-c", COMPILE, env=settings)
    assert code == 0, errors
    init, step = map(float, output.split())
    print(
        f"\nCPU seconds to compile: initialisation {init:.1f}, training step {step:.1f}"
    )
    assert init <= step


@pytest.mark.slow
def test_one_step_takes_few_cpu_seconds(tmp_path):
    result = []
    for number in range(2):
        command = (
            *("-m", "dresnet_jax.train", "--config=configs/digits.py"),
            *("--config.train.num_steps=1", f"--workdir={tmp_path / str(number)}"),
        )
        env = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
        result.append(seconds_of(command, cpu=True, env=env))
    size = sum(p.stat().st_size for p in Path(tmp_path / "cache").rglob("*-cache"))
    print(
        f"\none step on digits: {result[0]:.1f} CPU seconds cold, "
        f"{result[1]:.1f} warm; cache {size / 1e6:.1f} MB"
    )
    assert result[0] <= 30
    assert result[1] <= 12
