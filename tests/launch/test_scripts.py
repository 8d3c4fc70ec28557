"""What every launcher promises: clean shell, help, one clear line for a mistake."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.launchers import (
    LAUNCH,
    assert_one_clear_line,
    environment,
    plain_tools,
    run_launcher,
)

SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
LAUNCHERS = ("local.sh", "slurm.sh", "tpu_vm.sh", "gke.sh")
# The flags without which each of them asks for more.
NEEDED = {
    "local.sh": ("2",),
    "slurm.sh": (),
    "tpu_vm.sh": ("--name=x", "--zone=z", "--type=v5litepod-16"),
    "gke.sh": ("--name=x", "--accelerator=tpu:v5litepod-16", "--image=i"),
}


def test_shellcheck_is_clean():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    scripts = [*SCRIPTS, *Path(__file__).parent.glob("*.sh")]
    result = subprocess.run(
        [shellcheck, "--external-sources", "--source-path=SCRIPTDIR/..", *scripts],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_what_is_run_is_executable():
    for script in SCRIPTS:
        runs = script.suffix == ".sh" and script.name != "common.sh"
        assert os.access(script, os.X_OK) == runs, script


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_explains_every_flag(name):
    code, output, errors = run_launcher(name, "--help")
    assert (code, errors) == (0, "")
    assert f"launch/{name}" in output.splitlines()[2]
    text = (LAUNCH / name).read_text()
    table = re.search(r"^OPTION=\((.*?)\)$", text, re.DOTALL | re.MULTILINE)[1]
    switches = re.search(r"^SWITCH=\((.*?)\)$", text, re.MULTILINE)
    table += switches[1] if switches else ""
    flags = re.findall(r"\[([a-z_-]+)\]=", table)
    actions = re.search(r'^ACTIONS="(.*)"$', text, re.MULTILINE)
    flags += actions[1].split() if actions else ["logs", "status", "stop"]
    for flag in (*flags, "dry-run", "help"):
        assert re.search(rf"--{flag}\b(?![-_])", output), flag


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--cat=1"], "--cat is not a flag of"),
        (["--cat"], "--cat is not a flag of"),
        (["-x"], "-x is not a flag of"),
        (["--a]b=1"], "is not a flag of"),
        (["--status", "--stop"], "--status and --stop: only one of them"),
    ],
)
def test_mistakes_that_all_know(name, arguments, part):
    assert_one_clear_line(run_launcher(name, *arguments), part)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_nothing_to_train(name):
    for rest in ((), ("--",)):
        result = run_launcher(name, *NEEDED[name], "--dry-run", *rest)
        assert_one_clear_line(result, "Nothing to train")


TPU = ("tpu_vm.sh", "--name=x", "--zone=z")
GKE = ("gke.sh", "--name=x", "--image=i", "--dry-run")


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (["local.sh", "--", "a"], "Give the number of processes"),
        (["local.sh", "two", "--", "a"], "'two' is none"),
        (["local.sh", "0", "--", "a"], "'0' is none"),
        (["local.sh", "2", "3", "--", "a"], "'2 3' is none"),
        (["local.sh", "2", "--devices", "--", "a"], "--devices needs a value"),
        (["local.sh", "2", "--devices=", "--", "a"], "--devices needs a value"),
        (["local.sh", "2", "--devices=x", "--", "a"], "--devices=x must be a whole"),
        (["local.sh", "2", "--devices=1", "--gpus=1", "--", "a"], "only one of them"),
        (["local.sh", "2", "--workdir=a", "--", "b"], "give it after --"),
        (["local.sh", "2", "--", "--config=a"], "--workdir is missing after --"),
        (["local.sh", "2", "--", "--workdir=gs://a"], "give --log_dir"),
        (["local.sh", "--status"], "--workdir is missing"),
        (["local.sh", "--status", "--workdir=/nowhere"], "holds no run of local.sh"),
        (["slurm.sh", "--nodes=some", "--", "a"], "--nodes=some must be a whole"),
        (["slurm.sh", "word", "--", "a"], "'word' is not understood"),
        (["slurm.sh", "--name=a b", "--", "a"], "--name=a b may hold"),
        (["slurm.sh", "--status", "--job=x"], "--job=x must be the number"),
        (["slurm.sh", "--job=1", "--", "a"], "--job is for --status"),
        (["slurm.sh", "--logs", "--log_dir=/nowhere"], "holds no log dresnet-*.log"),
        (["tpu_vm.sh", "--zone=z"], "--name is missing"),
        (["tpu_vm.sh", "--name=A", "--zone=z"], "--name=A must be of lower-case"),
        (["tpu_vm.sh", "--name=a"], "--zone is missing"),
        ([*TPU, "--", "a"], "--type is missing"),
        (
            [*TPU, "--type=v9-8", "--", "a"],
            "give its TPU software version as --runtime",
        ),
        ([*TPU, "--type=v4-8", "--slices=0", "--", "a"], "--slices=0 must be a whole"),
        ([*TPU, "--logs", "--worker=all"], "--worker=all must be a whole"),
        (["gke.sh", "--image=i", "--", "a"], "--name is missing"),
        ([*GKE, "--", "a"], "--accelerator is missing"),
        (["gke.sh", "--name=x", "--dry-run", "--accelerator=tpu:v4-8"], "--image is"),
        ([*GKE, "--accelerator=v4-8", "--", "a"], "must be like tpu:v5litepod-16"),
        ([*GKE, "--accelerator=tpu:v4-9", "--", "a"], "sizes of v4 are 8 16 32"),
        ([*GKE, "--accelerator=tpu:v9-8", "--", "a"], "the families are v4"),
        ([*GKE, "--accelerator=gpu:x:8", "--", "a"], "the kinds are a100 a100-80gb"),
        ([*GKE, "--accelerator=gpu:h100:x", "--", "a"], "must be the GPUs of a node"),
        ([*GKE, "--accelerator=gpu:h100:8", "--slices=2", "--", "a"], "give --nodes"),
        ([*GKE, "--accelerator=tpu:v4-8", "--nodes=2", "--", "a"], "give --slices"),
        ([*GKE, "--accelerator=tpu:v4-8", "--", "a\x01"], "holds a control character"),
    ],
)
def test_mistakes_of_one(command, part):
    assert_one_clear_line(run_launcher(*command), part)


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (["slurm.sh", "--", "a"], "sbatch"),
        (["slurm.sh", "--status"], "squeue"),
        ([*TPU, "--type=v4-8", "--", "a"], "gcloud"),
        ([*TPU, "--status"], "gcloud"),
        (["gke.sh", "--name=x", "--status"], "kubectl"),
    ],
)
def test_a_program_that_is_not_there(command, program, tmp_path):
    env = environment() | {"PATH": str(plain_tools(tmp_path / "bin"))}
    result = run_launcher(*command, env=env)
    assert_one_clear_line(result, f"{program} is not installed")


def test_a_python_that_is_not_there():
    result = run_launcher(
        "local.sh", 2, "--", "--workdir=x", env=environment(PYTHON="/no/python")
    )
    assert_one_clear_line(result, "PYTHON=/no/python is not there")


def test_a_directory_for_logs_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    result = run_launcher("local.sh", 1, "--", f"--workdir={tmp_path / 'file' / 'run'}")
    assert_one_clear_line(result, "cannot be written")


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_dry_run_calls_nothing(name, tmp_path):
    programs = plain_tools(tmp_path / "bin")
    called = tmp_path / "called"
    for program in ("sbatch", "gcloud", "kubectl"):
        (programs / program).write_text(f'#!/bin/sh\necho "$0" >>{called}\n')
        (programs / program).chmod(0o755)
    env = environment() | {"PATH": str(programs)}
    train = ("--", "--config=c.py", f"--workdir={tmp_path / 'run'}")
    code, output, errors = run_launcher(
        name, *NEEDED[name], "--dry-run", *train, env=env
    )
    assert (code, errors) == (0, "")
    assert "--config=c.py" in output
    assert not called.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}
