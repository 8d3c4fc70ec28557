"""tpu_vm.sh against a stand-in for gcloud that runs what is sent to the workers."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launch.launchers import (
    AWKWARD,
    assert_one_clear_line,
    environment,
    fake_python,
    run_launcher,
    wait_until,
)

WHERE = ("--name=digits", "--zone=us-west4-a")
NEW = (*WHERE, "--type=v5litepod-8", "--poll=1")
FAKE_GCLOUD = Path(__file__).parent / "fake_gcloud.py"
FAKE_WORKER_PYTHON = Path(__file__).parent / "fake_worker_python.sh"


class Cloud:
    """A cloud in a directory, and the launcher that uses it."""

    def __init__(self, directory):
        self.directory = directory
        self.workdir = directory / "run"
        (directory / "bin").mkdir()
        (directory / "tools").mkdir()
        gcloud = directory / "bin" / "gcloud"
        gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_GCLOUD} "$@"\n')
        gcloud.chmod(0o755)
        (directory / "tools" / "python3").symlink_to(FAKE_WORKER_PYTHON)
        self.next_states("ACTIVE")
        self.env = environment(
            directory / "bin",
            FAKE_CLOUD=str(directory),
            FAKE_TRAIN=fake_python(directory),
        )

    def next_states(self, *states):
        """What a queued resource goes through that is created from now on."""
        (self.directory / "next_states").write_text("\n".join(states))

    def states(self, *states):
        """What the queued resource that is there goes through from now on."""
        (self.directory / "states").write_text("\n".join(states))

    def run(self, *arguments):
        return run_launcher("tpu_vm.sh", *arguments, env=self.env)

    def train(self, *flags):
        return self.run(*NEW, *flags, "--", *AWKWARD, f"--workdir={self.workdir}")

    def calls(self):
        """The calls of gcloud since the last time, each as a list of its words."""
        file = self.directory / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def verbs(self):
        """The changes that the calls since the last time asked for."""
        verbs = [call[3] for call in self.calls()]
        return [verb for verb in verbs if verb != "describe"]

    def given(self):
        """What the process was given that trained last."""
        file = self.workdir / "process_0.json"
        return wait_until(lambda: file.exists() and json.loads(file.read_text()))

    def homes(self):
        return sorted(self.directory.glob("node_*"))

    def log(self, home):
        return (home / "dresnet_jax.launch" / "log").read_text()


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.states("ACTIVE")
    cloud.run(*WHERE, "--stop")


def test_it_creates_waits_installs_and_trains_on_all_workers(cloud):
    cloud.next_states("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    code, output, errors = cloud.train("--slices=2", "--spot", "--project=p")
    assert code == 0, errors
    assert "digits: WAITING_FOR_RESOURCES\ndigits: PROVISIONING\n" in output
    calls = cloud.calls()
    assert calls[1] == [
        "compute", "tpus", "queued-resources", "create", "digits",
        "--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite",
        "--node-count=2", "--node-prefix=digits", "--spot",
        "--zone=us-west4-a", "--project=p",
    ]  # fmt: skip
    assert all(call[-2:] == ["--zone=us-west4-a", "--project=p"] for call in calls)
    assert [call[3] for call in calls if call[3] != "describe"] == [
        "create", "scp", "ssh", "ssh",
    ]  # fmt: skip
    assert len(cloud.homes()) == 4
    assert tuple(cloud.given()["arguments"]) == (*AWKWARD, f"--workdir={cloud.workdir}")
    head = subprocess.run(
        ["git", "show", "HEAD:dresnet_jax/errors.py"], cwd=ROOT, capture_output=True
    ).stdout
    for home in cloud.homes():
        assert (home / "dresnet_jax" / "dresnet_jax" / "errors.py").read_bytes() == head
        python_calls = (home / "python_calls").read_text()
        assert "-m pip install --quiet --user uv" in python_calls
        assert "--python=3.11" in python_calls
        assert "jax[tpu]" in python_calls
        assert "locks/py311.txt" in python_calls
        wait_until(lambda home=home: "waits" in cloud.log(home))

    code, output, _ = cloud.run(*WHERE, "--slices=2", "--status")
    assert code == 0
    assert output.startswith("digits: ACTIVE\n")
    assert output.count(": runs\n") == 4
    code, output, _ = cloud.run(*WHERE, "--logs", "--worker=1")
    assert code == 0
    assert output.count("\nwaits\n") == 1
    assert cloud.run(*WHERE, "--stop")[0] == 0
    for home in cloud.homes():
        code_file = home / "dresnet_jax.launch" / "code"
        wait_until(code_file.exists)
        assert "signal 15" in cloud.log(home)
    _, output, _ = cloud.run(*WHERE, "--status")
    assert output.count(": ended with code 75\n") == 4


def test_one_slice_is_a_node_of_the_same_name(cloud):
    assert cloud.train()[0] == 0
    create = next(call for call in cloud.calls() if call[3] == "create")
    assert "--node-id=digits" in create
    assert not any(a.startswith(("--node-count", "--spot")) for a in create)
    assert len(cloud.homes()) == 2
    assert cloud.run(*WHERE, "--delete")[0] == 0
    assert cloud.verbs() == ["delete"]
    code, output, _ = cloud.run(*WHERE, "--status")
    assert (code, output) == (0, "digits: does not exist\n")


@pytest.mark.parametrize(
    "state",
    [
        "PREEMPTED",
        "SUSPENDING",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("SUSPENDED", "FAILED")),
    ],
)
def test_what_was_preempted_is_made_again_and_the_same_command_resumes(cloud, state):
    assert cloud.train()[0] == 0
    given = cloud.given()
    # The machines are gone, and what ran there was stopped and had saved.
    cloud.run(*WHERE, "--stop")
    wait_until((cloud.workdir / "saved").exists)
    if state == "PREEMPTED":
        (cloud.directory / "preempted").touch()
    else:
        cloud.states(*{"SUSPENDING": ["SUSPENDING", "SUSPENDED"]}.get(state, [state]))
    cloud.verbs()
    code, _, errors = cloud.train("--resume")
    assert code == 0, errors
    assert cloud.verbs() == ["delete", "create", "scp", "ssh", "ssh"]
    assert wait_until(cloud.given)["arguments"] == given["arguments"]
    for home in cloud.homes():
        wait_until(lambda home=home: "went on" in cloud.log(home))


def test_resume_leaves_alone_what_trains_and_starts_what_ended(cloud):
    assert cloud.train()[0] == 0
    for home in cloud.homes():
        wait_until(lambda home=home: "waits" in cloud.log(home))
    cloud.verbs()
    code, output, _ = cloud.train("--resume")
    assert (code, output) == (0, "digits trains.\n")
    assert cloud.verbs() == ["ssh"]

    # One worker's process ends: what is left waits for it in vain.
    home = cloud.homes()[0]
    subprocess.run(["kill", (home / "dresnet_jax.launch" / "pid").read_text().strip()])
    wait_until((home / "dresnet_jax.launch" / "code").exists)
    code, _, errors = cloud.train("--resume")
    assert code == 0, errors
    assert cloud.verbs() == ["ssh", "ssh", "scp", "ssh", "ssh"]
    for home in cloud.homes():
        wait_until(lambda home=home: "went on" in cloud.log(home))


def test_resume_without_anything_starts(cloud):
    code, _, errors = cloud.train("--resume")
    assert code == 0, errors
    assert cloud.verbs() == ["create", "scp", "ssh", "ssh"]


def test_a_start_does_not_touch_what_exists(cloud):
    assert cloud.train()[0] == 0
    cloud.verbs()
    assert_one_clear_line(cloud.train(), "digits exists and is ACTIVE: --resume")
    assert cloud.verbs() == []


def test_a_queued_resource_that_fails_ends_the_wait(cloud):
    cloud.next_states("PROVISIONING", "FAILED")
    code, _, errors = cloud.train()
    assert code == 1
    assert errors == "error: digits is FAILED: --resume tries again.\n"
    assert cloud.verbs() == ["create"]


def test_what_gcloud_refuses_is_said_and_ends_it(cloud):
    code, output, errors = cloud.run(*NEW[:1], *NEW[2:], "--zone=nowhere", "--", "a")
    assert code == 1
    assert output == ""
    assert "Permission denied" in errors
    assert cloud.verbs() == []


def test_a_dry_run_prints_what_would_run(cloud):
    code, output, errors = cloud.train("--slices=2", "--spot", "--dry-run")
    assert (code, errors) == (0, "")
    printed = [shlex.split(line) for line in output.splitlines()]
    assert cloud.calls() == []
    assert cloud.train("--slices=2", "--spot")[0] == 0
    called = [["gcloud", *c] for c in cloud.calls() if c[3] != "describe"]
    printed = [c for c in printed if c[0] == "gcloud" and c[4] != "describe"]
    # But for the temporary directory of the archive.
    for commands in (printed, called):
        commands[1][5] = Path(commands[1][5]).name
    assert printed == called
