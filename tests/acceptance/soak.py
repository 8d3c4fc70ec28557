"""Kills a run again and again, and compares what is left with a run that was not.

python -m tests.acceptance.soak --kills=50 --seed=0 --out=runs/soak

Each life of the run is ended at a random moment: SIGKILL to one process or to all, once
by chance and once while a checkpoint is written, or SIGTERM to one. The lives from
--change on have other numbers of processes.
"""

import collections
import json
import random
import signal
import time
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from etils import epath

from dresnet_jax.training import processes
from tests.acceptance import small_run
from tests.conftest import SMALL

_KILLS = flags.DEFINE_integer("kills", 50, "Lives that are ended.")
_CHANGE = flags.DEFINE_integer("change", 40, "The life from which layouts change.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments and the ways.")
_STEPS = flags.DEFINE_integer("steps", 2000, "Of the run.")
_OUT = flags.DEFINE_string("out", None, "A new directory.", required=True)

WAYS = ("kill one", "kill all", "kill all while it saves", "terminate one")
# Exit code of a process that was told to stop and has saved.
SAVED = processes.PreemptedError.exit_code
# (processes, devices of each).
LAYOUT, OTHERS = (2, 1), ((1, 1), (1, 2), (2, 1))


def soak(directory, *, kills, change, seed, steps, rate=small_run.GENTLE):
    """Runs both, and returns the figures.

    Args:
      directory: a new one.
      kills: lives that are ended.
      change: the life, from 0, from which the number of processes changes.
      seed: of the moments and the ways.
      steps: of the run.
      rate: the flag of the learning rate.
    """
    chance = random.Random(seed)
    directory = Path(directory)
    arguments = (
        *SMALL,
        rate,
        f"--config.train.num_steps={steps}",
        "--config.train.checkpoint_every_steps=10",
        # So that what is printed fits the pipe that is read at the end.
        "--config.train.log_every_steps=5",
        "--config.train.eval_every_epochs=20",
    )
    whole, broken = directory / "whole", directory / "broken"
    started = time.monotonic()
    small_run.finish(small_run.start_processes(*LAYOUT, *arguments, workdir=whole))
    unbroken_seconds = time.monotonic() - started
    ways, lost, saved = collections.Counter(), 0, 0
    for life in range(kills + 1):
        layout = LAYOUT if life < change else chance.choice(OTHERS)
        running = small_run.start_processes(*layout, *arguments, workdir=broken)
        if life == kills:
            outputs = small_run.finish(running)
        else:
            way = chance.choice(WAYS)
            # So far that steps are left for the lives to come, though each ends late.
            goal = saved + (steps - saved) * chance.random() / (kills + 2 - life)
            outputs = end(running, broken, way, goal, chance)
        result = went_on_from(outputs)
        lost += max(0, saved - result) if result is not None else 0
        saved = max(finished(broken), default=0)
        if life < kills:
            ways[way if saved < steps else "too late"] += 1
        print(
            f"life {life}, {layout[0]} x {layout[1]} devices: went on from {result}, "
            f"saved {saved}" + (f", {way}" if life < kills else ", to its end"),
            flush=True,
        )
    return {
        "seed": seed,
        "ways": dict(ways),
        "steps_lost": lost,
        "unbroken_seconds": unbroken_seconds,
        "seconds": time.monotonic() - started,
        **compare(whole, broken, steps),
    }


def end(running, directory, way, goal, chance):
    """Ends a life once it has logged the goal; returns the processes' outputs."""
    deadline = time.monotonic() + 600
    while small_run.last_step(directory) < goal:
        if all(process.poll() is not None for process in running):
            break
        assert time.monotonic() < deadline, f"no step {goal}"
        time.sleep(0.01)
    if way == "kill all while it saves":
        while not list((directory / "checkpoints").glob("*tmp*")):
            if any(process.poll() is not None for process in running):
                break
            time.sleep(0.001)
    else:
        time.sleep(chance.random() * 0.2)
    if way.startswith("kill all"):
        for process in running:
            process.kill()
    else:
        number = signal.SIGTERM if way == "terminate one" else signal.SIGKILL
        chance.choice(running).send_signal(number)
    # What a launcher does: where one has died, the others have no one to wait for.
    deadline = time.monotonic() + 60
    while all(process.poll() in (None, SAVED) for process in running):
        if all(process.poll() == SAVED for process in running):
            break
        assert time.monotonic() < deadline, "a signal was lost"
        time.sleep(0.05)
    for process in running:
        if process.poll() is None:
            process.kill()
    return [process.communicate() for process in running]


def finished(directory):
    """The steps of the checkpoints that are finished."""
    return [
        int(path.parent.name)
        for path in (directory / "checkpoints").glob("*/sha256.json")
        if path.parent.name.isdigit()
    ]


def went_on_from(outputs):
    """The step that a life began at, as it said itself; None if it ended before."""
    for line in outputs[0][0].splitlines():
        if line.startswith("Resuming from the checkpoint of step "):
            return int(line.rstrip(".").split()[-1])
        if line.startswith("step "):
            return 0
    return None


def compare(whole, broken, steps):
    """How far the final parameters and the log lines of two runs are apart."""
    states = [
        small_run.final_state(epath.Path(run), steps, only_params=True)
        for run in (whole, broken)
    ]
    lines = [small_run.timeless_lines(run) for run in (whole, broken)]
    numbers = [[json.dumps([x["step"], sorted(x)]) for x in run] for run in lines]
    counts = [collections.Counter(run) for run in numbers]
    return {
        "largest_difference": max(
            float(np.abs(a - b).max()) for a, b in zip(*states, strict=True)
        ),
        "log_lines": len(lines[0]),
        "lines_lost": sum((counts[0] - counts[1]).values()),
        "lines_doubled": sum((counts[1] - counts[0]).values()),
        "lines_changed": sum(a != b for a, b in zip(*lines, strict=False)),
    }


def main(_):
    """Prints the figures as a line of JSON."""
    logging.set_verbosity(logging.WARNING)
    print(
        json.dumps(
            soak(
                _OUT.value,
                kills=_KILLS.value,
                change=_CHANGE.value,
                seed=_SEED.value,
                steps=_STEPS.value,
            )
        )
    )


if __name__ == "__main__":
    app.run(main)
