"""slurm.sh and slurm.sbatch on a real Slurm of one node."""

import json
import shlex
import subprocess

import pytest

from tests.launch.launchers import (
    AWKWARD,
    LAUNCH,
    SHORT,
    assert_two_processes_trained,
    environment,
    fake_python,
    run_launcher,
    wait_until,
)

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Jobs:
    """slurm.sh with its logs in one directory, and what Slurm reports of its jobs."""

    def __init__(self, directory, settings):
        self.directory = directory
        self.workdir = directory / "run"
        self.env = environment(**settings)
        self.fake_env = environment(PYTHON=fake_python(directory), **settings)

    def run(self, *arguments, env=None):
        return run_launcher(
            "slurm.sh", f"--log_dir={self.directory}", *arguments, env=env or self.env
        )

    def submit(self, *flags, arguments=(), env=None):
        """Submits two processes; the job's number."""
        train = (*arguments, f"--workdir={self.workdir}")
        code, output, errors = self.run(
            "--tasks-per-node=2", *flags, "--", *train, env=env or self.fake_env
        )
        assert code == 0, errors
        return output.strip()

    def state(self, job):
        command = ["squeue", "--noheader", "--states=all", f"--jobs={job}"]
        return subprocess.check_output(
            [*command, "--format=%T"], env=self.env, text=True
        ).strip()

    def wait(self, job, *states, seconds=60):
        """Waits until a job is in one of some states; which."""

        def result():
            state = self.state(job)
            assert state in states or state not in FINAL, f"{state}\n{self.log(job)}"
            return state if state in states else None

        return wait_until(result, seconds)

    def log(self, job):
        files = list(self.directory.glob(f"*-{job}.log"))
        return files[0].read_text() if files else ""

    def wait_until_training(self, job):
        wait_until(lambda: self.log(job).count("waits") == 2)


@pytest.fixture
def jobs(tmp_path, slurm):
    return Jobs(tmp_path, slurm)


@pytest.mark.slow
def test_two_processes_train_with_no_flag_but_the_launchers_own(jobs):
    env = jobs.env | {"JAX_PLATFORMS": "cpu"}
    job = jobs.submit(arguments=SHORT, env=env)
    jobs.wait(job, "COMPLETED", seconds=500)
    assert_two_processes_trained(jobs.log(job))


@pytest.mark.slow
def test_what_is_stopped_is_queued_again_and_resumes(jobs):
    job = jobs.submit("--name=twice", arguments=AWKWARD)
    jobs.wait_until_training(job)
    for rank in (0, 1):
        given = json.loads((jobs.workdir / f"process_{rank}.json").read_text())
        assert tuple(given["arguments"]) == (*AWKWARD, f"--workdir={jobs.workdir}")
    # As Slurm does before the time limit.
    subprocess.run(["scancel", "--signal=TERM", job], env=jobs.env, check=True)
    jobs.wait(job, "COMPLETED", seconds=120)
    log = jobs.log(job)
    assert log.count("signal 15") == 2
    assert log.count("went on") == 2
    assert "start 0" in log
    assert "start 1" in log
    code, output, _ = jobs.run("--logs", "--name=twice")
    assert (code, output) == (0, log)


def test_stop_has_it_save_and_not_come_back(jobs):
    job = jobs.submit("--name=stopped")
    waiting = jobs.submit("--name=stopped")
    jobs.wait_until_training(job)
    code, output, _ = jobs.run("--name=stopped", "--status")
    assert code == 0
    lines = {line.split()[0]: line.split()[2] for line in output.splitlines()}
    assert lines[job] == "RUNNING"

    code, output, _ = jobs.run("--name=stopped", "--stop", "--dry-run")
    assert set(output.splitlines()) >= {
        f"scontrol update JobId={job} Requeue=0",
        f"scancel --signal=TERM {job}",
    }
    assert jobs.state(job) == "RUNNING"
    code, _, errors = jobs.run("--name=stopped", "--stop")
    assert code == 0, errors
    jobs.wait(job, "FAILED")
    assert jobs.log(job).count("signal 15") == 2
    assert (jobs.workdir / "saved").exists()
    assert jobs.wait(waiting, "CANCELLED") == "CANCELLED"
    code, _, errors = jobs.run("--name=stopped", "--stop")
    assert (code, errors) == (2, "error: No such job waits or runs.\n")


def test_a_process_that_fails_ends_the_job_for_good(jobs):
    job = jobs.submit(arguments=("--die=all:2",))
    jobs.wait(job, "FAILED")
    assert "start 1" not in jobs.log(job)


def test_a_dry_run_prints_what_would_be_submitted(jobs):
    flags = ("--nodes=4", "--gpus-per-node=8", "--cpus-per-task=6", "--partition=p")
    more = ("--account=a", "--time=24:00:00", "--name=big")
    code, output, errors = jobs.run(*flags, *more, "--dry-run", "--", *AWKWARD)
    assert (code, errors) == (0, "")
    (line,) = output.splitlines()
    words = shlex.split(line)
    assert words[0] == "env"
    assert words[2:] == [
        "sbatch", "--parsable", "--job-name=big", "--nodes=4", "--ntasks-per-node=8",
        "--gpus-per-node=8", "--cpus-per-task=6", "--partition=p", "--account=a",
        "--time=24:00:00", f"--output={jobs.directory}/%x-%j.log",
        str(LAUNCH / "slurm.sbatch"), *AWKWARD,
    ]  # fmt: skip
