"""SIGTERM ends training with exit code 75 at any time, and the same command resumes."""

import signal

import pytest

from tests.acceptance import small_run, soak
from tests.conftest import SMALL, run_command, start_python

SHORT = (*SMALL, "--config.train.num_steps=3")

# Trains, and stands still where it says so, for as long as a person needs.
PROGRAM = """
import sys, time
from dresnet_jax import train

def held(module, name, seconds=30):
    function = getattr(module, name)
    def waits(*args, **options):
        print("HERE", flush=True)
        time.sleep(seconds)
        return function(*args, **options)
    setattr(module, name, waits)

place = sys.argv.pop(1)
if place == "before they meet":
    held(train, "_meet", 2)
else:
    # Imports JAX, whose threads take signals if they are older than the command.
    from dresnet_jax.training import checkpointing, experiment, reporting

    if place == "before the first step":
        held(experiment.Experiment, "open_data")
    elif place == "in the report":
        held(reporting, "report")
    else:
        held(checkpointing.Checkpoints, "save_last", 2)
sys.exit(train.command.run(["train", *sys.argv[1:]]))
"""


def stopped(place, directory, count=1):
    """The exit code of a training that is told to stop at some place, and its words."""
    arguments = (*SHORT, f"--workdir={directory}")
    process = start_python("-c", PROGRAM, place, *arguments)
    wait_until_it_stands(process)
    for _ in range(count):
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def wait_until_it_stands(process):
    for line in process.stdout:
        if line.startswith("HERE"):
            break


@pytest.mark.parametrize("place", ["before the first step", "in the report"])
def test_sigterm_is_obeyed_outside_the_steps_too(tmp_path, place):
    directory = tmp_path / "run"
    code, errors = stopped(place, directory)
    assert code == 75, errors
    assert errors.endswith("error: told to stop: the same command resumes.\n")
    assert not (directory / "report.json").exists()
    code, output, errors = run_command("train", *SHORT, f"--workdir={directory}")
    assert code == 0, errors
    goes_on = "Resuming from the checkpoint of step 3" in output
    assert goes_on == (place == "in the report")
    assert (directory / "report.json").exists()


def test_a_second_sigterm_cuts_no_save(tmp_path):
    """The last step's, which takes long here."""
    directory = tmp_path / "run"
    code, errors = stopped("in a save", directory, count=2)
    assert code in (0, 75), errors
    assert (directory / "checkpoints" / "3").exists()


def test_a_signal_to_one_process_before_they_meet_stops_both(tmp_path):
    directory = tmp_path / "run"
    processes = start_two(directory)
    for process in processes:
        wait_until_it_stands(process)
    processes[1].send_signal(signal.SIGTERM)
    small_run.finish(processes, code=75)
    assert soak.finished(directory)


def test_a_process_whose_others_do_not_come_stops_soon(tmp_path):
    directory = tmp_path / "run"
    processes = start_two(directory)
    processes[1].kill()
    processes[1].communicate()
    wait_until_it_stands(processes[0])
    processes[0].send_signal(signal.SIGTERM)
    (_, errors), *_ = small_run.finish(processes[:1], code=75)
    assert errors.endswith("error: told to stop: the same command resumes.\n")


def start_two(directory):
    """Starts two processes that stand still before they meet."""
    arguments = (*SHORT, f"--workdir={directory}")

    def words(coordinates):
        flags = small_run.process_flags(coordinates)
        return ("-c", PROGRAM, "before they meet", *arguments, *flags)

    return small_run.start_processes_of(2, words, devices=1)
