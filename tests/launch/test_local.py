import json
import os
import signal
import time

import pytest

from tests.launch.launchers import (
    AWKWARD,
    SHORT,
    assert_one_clear_line,
    assert_two_processes_trained,
    environment,
    fake_python,
    run_launcher,
    start_launcher,
    wait_until,
)


@pytest.fixture
def env(tmp_path):
    return environment(PYTHON=fake_python(tmp_path))


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "a run"


def records(workdir, count):
    """What each process was given, once all are up."""
    files = [workdir / f"process_{i}.json" for i in range(count)]

    def read():
        try:
            return [json.loads(file.read_text()) for file in files]
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    return wait_until(read)


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def log(workdir, process):
    return workdir.with_name(f"{workdir.name}.launch") / f"process_{process}.log"


def test_every_process_gets_the_arguments_its_number_and_one_coordinator(env, workdir):
    arguments = (*AWKWARD, "--two=\nlines", f"--workdir={workdir}")
    process = start_launcher("local.sh", 3, "--devices=4", "--", *arguments, env=env)
    given = records(workdir, 3)
    process.terminate()
    process.communicate()
    assert process.returncode == 75
    coordinators = {record["arguments"][-3] for record in given}
    assert len(coordinators) == 1
    assert coordinators.pop().startswith("--coordinator=localhost:")
    for i, record in enumerate(given):
        assert tuple(record["arguments"][:-3]) == arguments
        assert record["arguments"][-2:] == ["--num_processes=3", f"--process_id={i}"]
        assert record["env"]["JAX_PLATFORMS"] == "cpu"
        assert record["env"]["JAX_NUM_CPU_DEVICES"] == "4"


def test_a_dry_run_prints_the_commands_and_starts_nothing(env, workdir):
    arguments = (*AWKWARD, f"--workdir={workdir}")
    code, output, errors = run_launcher(
        "local.sh", 2, "--gpus=2", "--dry-run", "--", *arguments, env=env
    )
    assert (code, errors) == (0, "")
    assert not workdir.exists()
    assert not log(workdir, 0).parent.exists()
    # What was printed is what runs.
    workdir.mkdir()
    (workdir / "saved").touch()
    for i, line in enumerate(output.splitlines()):
        assert os.waitstatus_to_exitcode(os.system(f"{line} >/dev/null")) == 0
        record = records(workdir, i + 1)[i]
        assert tuple(record["arguments"][:-3]) == arguments
        assert record["env"]["CUDA_VISIBLE_DEVICES"] == ["0,1", "2,3"][i]


def test_process_0_prints_and_all_are_logged_start_after_start(env, workdir):
    for _ in range(2):
        workdir.mkdir(exist_ok=True)
        (workdir / "saved").touch()
        code, output, errors = run_launcher(
            "local.sh", 2, "--", f"--workdir={workdir}", env=env
        )
        assert (code, output, errors) == (0, "went on\n", "")
    code, output, _ = run_launcher("local.sh", "--logs", f"--workdir={workdir}")
    assert code == 0
    assert output.count("went on") == 4
    assert [line for line in output.splitlines() if line.startswith("==>")] == [
        f"==> {log(workdir, 0)} <==",
        f"==> {log(workdir, 1)} <==",
    ]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)]
)
def test_a_signal_reaches_each_process_once_and_the_same_command_resumes(
    number, code, env, workdir
):
    command = ("local.sh", 2, "--", f"--workdir={workdir}")
    process = start_launcher(*command, env=env)
    records(workdir, 2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert output == f"waits\nsignal {number}\n"
    for i in (0, 1):
        assert log(workdir, i).read_text().count("signal ") == 1
    assert run_launcher(*command, env=env) == (0, "went on\n", "")


def test_where_one_dies_the_others_are_ended_and_its_code_is_given(env, workdir):
    arguments = (f"--workdir={workdir}", "--die=1:3", "--deaf=2")
    start = time.monotonic()
    code, _, errors = run_launcher(
        "local.sh", 3, "--grace=2", "--", *arguments, env=env
    )
    assert code == 3
    assert time.monotonic() - start < 20
    assert errors == (
        "a warning\n"
        f"process 1 ended with code 3: see {log(workdir, 1)}\n"
        "process 2 did not end in 2 s: SIGKILL\n"
    )
    assert not any(lives(record["pid"]) for record in records(workdir, 3))
    _, output, _ = run_launcher("local.sh", "--status", f"--workdir={workdir}")
    assert output == (
        "process 0: ended with code 75\n"
        "process 1: ended with code 3\n"
        "process 2: ended with code 137\n"
    )


def test_status_and_stop(env, workdir):
    where = f"--workdir={workdir}"
    process = start_launcher("local.sh", 2, "--", where, env=env)
    pids = [record["pid"] for record in records(workdir, 2)]
    code, output, _ = run_launcher("local.sh", "--status", where)
    assert code == 0
    assert output == "".join(
        f"process {i}: runs, pid {p}\n" for i, p in enumerate(pids)
    )

    assert_one_clear_line(
        run_launcher("local.sh", 2, "--", where, env=env), "still run: see --status"
    )
    code, output, _ = run_launcher("local.sh", "--stop", "--dry-run", where)
    assert output == "".join(f"kill -TERM {p}\n" for p in pids)
    assert all(map(lives, pids))

    assert run_launcher("local.sh", "--stop", where) == (0, "", "")
    process.communicate(timeout=30)
    assert process.returncode == 75
    _, output, _ = run_launcher("local.sh", "--status", where)
    assert output == "process 0: ended with code 75\nprocess 1: ended with code 75\n"


def test_a_stranger_with_the_number_of_a_dead_process_is_left_alone(env, workdir):
    process = start_launcher("local.sh", 1, "--", f"--workdir={workdir}", env=env)
    records(workdir, 1)
    # As after a restart of the machine: the file stays, the number is someone else's.
    pid_file = log(workdir, 0).with_suffix(".pid")
    _, mark = pid_file.read_text().splitlines()
    process.kill()
    os.kill(records(workdir, 1)[0]["pid"], signal.SIGKILL)
    process.communicate()
    stranger = start_launcher("local.sh", 1, "--", f"--workdir={workdir}2", env=env)
    other = records(workdir.with_name("a run2"), 1)[0]["pid"]
    pid_file.write_text(f"{other}\n{mark}\n")
    assert run_launcher("local.sh", "--stop", f"--workdir={workdir}") == (0, "", "")
    _, output, _ = run_launcher("local.sh", "--status", f"--workdir={workdir}")
    assert output == "process 0: gone\n"
    assert lives(other)
    stranger.terminate()
    stranger.communicate()


@pytest.mark.slow
def test_two_processes_train_together(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    code, output, errors = run_launcher("local.sh", 2, "--", *SHORT, workdir)
    assert code == 0, errors
    assert_two_processes_trained(output)
