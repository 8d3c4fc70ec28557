"""Trains a model, or resumes a run that was stopped.

    python -m dresnet_jax.train --config=configs/digits.py --workdir=runs/digits

The run directory then holds config.json, checkpoints/, metrics.jsonl, tensorboard/,
report.json and the pictures curves.png, gates.png and gate_functions.png. The same
command resumes an unfinished run from its newest checkpoint.

Several processes train together where Cloud TPU, GKE, Slurm or Open MPI starts them, or
where each is given the coordinator (docs/pods.md). Exit codes: 0 finished, 1 failed, 2
a wrong value, 75 told to stop (SIGTERM) and saved, 124 ended by --watchdog, 130 Ctrl-C.
"""

import contextlib
import functools
import os
import signal
import sys

from dresnet_jax import signals
from dresnet_jax.commands import cli
from dresnet_jax.training import run_config

command = cli.Command(__doc__, "config workdir overwrite compilation_cache json")

_COORDINATOR = command.flag("coordinator", str, "Host and port of process 0.")
_NUM_PROCESSES = command.flag("num_processes", int, "Processes of the run.")
_PROCESS_ID = command.flag("process_id", int, "This process's, from 0.")
_JOIN_TIMEOUT = command.flag(
    "join_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1
)
_WATCHDOG = command.flag(
    "watchdog",
    0.0,
    "Seconds without a step that end the process; 0 for never.",
    lower_bound=0,
)
_PROFILE = command.flag(
    "profile", str, "Steps that are traced, such as 100:105, to profiles/."
)


def _meet() -> None:
    from dresnet_jax.training import processes

    process = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    processes.join(*process, _JOIN_TIMEOUT.value, os.environ)


@command.main
def main() -> None:
    """Trains, draws, prints."""
    config, directory = command.config(), command.workdir()
    profile = cli.steps_range("profile", _PROFILE.value)

    # A process that ended before all have met would leave the others waiting for it.
    with signals.put_off(signal.SIGTERM):
        _meet()

    import jax

    from dresnet_jax.costs import chips
    from dresnet_jax.data import prepared
    from dresnet_jax.figures import run
    from dresnet_jax.structure.growth import events, training
    from dresnet_jax.training import experiment, loop, processes, watching, workdir

    command.use_compilation_cache()
    if jax.process_count() > 1:
        processes.say(processes.description())
    if not command.flags.overwrite:
        config = run_config.as_begun(directory, config)
    exp = experiment.build(config)
    prepared.require(exp.dataset, config.data.data_dir)
    watch = functools.partial(
        watching.Watch,
        directory,
        watchdog=_WATCHDOG.value,
        profile=profile,
        peak_flops=chips.peak_flops(jax.devices()[0]),
    )
    if config.growth.events:
        events.check(exp)
    claim = workdir.claim(directory, config, overwrite=command.flags.overwrite)
    with contextlib.ExitStack() as stack:
        processes.first_alone(lambda: stack.enter_context(claim))
        processes.require_seen(directory)
        if config.growth.events:
            report = training.run(config, directory, watch)
        else:
            report = loop.run(exp, directory, watch())
    if not processes.is_first():
        return
    if report["gates"]:
        print(run.gate_table(report["gates"]))
    for picture in run.run_pictures(directory):
        print(f"picture: {picture}")
    print(f"validation accuracy: {report['val_accuracy']:.3f}")
    print(f"test accuracy: {report['test_accuracy']:.3f}")
    command.finish(report)


if __name__ == "__main__":
    sys.exit(command.run())
