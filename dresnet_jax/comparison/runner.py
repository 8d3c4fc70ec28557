"""Trains the runs of a comparison, one after the other or several at once."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

import jax
import ml_collections
from etils import epath

from dresnet_jax.comparison.grid import FAILED, Run
from dresnet_jax.errors import PREEMPTED_EXIT_CODE, RunFailedError
from dresnet_jax.training import (
    compilation_cache,
    experiment,
    json_files,
    late_report,
    loop,
    processes,
    workdir,
)
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.together import Group, Member

# Processes that `ended` starts by itself; each takes about a gigabyte.
_MOST_AT_ONCE = 8


def grouped(runs: Iterable[Run], together: int) -> list[list[Run]]:
    """Groups runs that one program trains together: several seeds of a variant."""
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.seed // together, run.variant), []).append(run)
    return list(groups.values())


def train(group: Sequence[Run], together: int) -> float:
    """Trains runs to their end, or resumes them; what they print goes to log.txt.

    A run whose loss is not finite has failed, and is not tried again.

    Args:
      group: one of `grouped`.
      together: seeds that the program has room for; with 1 it is that of `train`.

    Returns:
      The seconds that it took.
    """
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        members = {}
        for run in group:
            config, directory = run.experiment.config, run.directory
            stack.enter_context(workdir.claim(directory, config, overwrite=False))
            log = stack.enter_context((directory / "log.txt").open("a"))
            member = Member(run.experiment, directory, log)
            members[run.seed % together] = member
        for slot, error in _trained(members, together).items():
            directory = members[slot].directory
            json_files.write_json(directory / FAILED, {"error": str(error)})
    return time.monotonic() - start


def _trained(members: dict[int, Member], together: int) -> Mapping[int, Exception]:
    """Trains; returns by slot why a run failed."""
    first = next(iter(members.values()))
    with contextlib.redirect_stderr(first.output):
        if together > 1:
            return Group(members, together).train()
        try:
            with contextlib.redirect_stdout(first.output):
                loop.run(first.experiment, first.directory)
        except late_report.NonFiniteLossError as error:
            return {0: error}
        return {}


def ended(
    groups: Iterable[list[Run]],
    started: Callable[[list[Run]], None],
    at_once: int | None,
    together: int,
    cache: str | None,
) -> Generator[tuple[list[Run], float]]:
    """Trains groups of runs, several at once; close it to stop before the last.

    On a CPU small steps leave cores idle, so that runs side by side end sooner than one
    after the other.

    Args:
      groups: each as `train` takes it.
      started: called with each group that starts.
      at_once: how many groups, each in a process of its own; 1 for this process; None
        for one a core on a CPU, at most `_MOST_AT_ONCE`, and else 1.
      together: seeds of a group's program.
      cache: of compiled programs, as `compilation_cache.use` takes it.

    Yields:
      Each group that ended, and the seconds that it took.
    """
    if at_once is None:
        cores = len(os.sched_getaffinity(0))
        at_once = min(cores, _MOST_AT_ONCE) if jax.default_backend() == "cpu" else 1
    if at_once == 1:
        for group in groups:
            started(group)
            yield group, train(group, together)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        at_once,
        # A fork of a process with JAX's threads would hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(cache,),
    )
    with pool, processes.stop_signals() as stop:
        try:
            yield from _ended_in(pool, stop, at_once, together, groups, started)
        except BaseException:
            # Those that train save and end, however many signals they get.
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _ended_in(
    pool: concurrent.futures.Executor,
    stop: processes.Stop,
    at_once: int,
    together: int,
    groups: Iterable[list[Run]],
    started: Callable[[list[Run]], None],
) -> Iterator[tuple[list[Run], float]]:
    waiting = iter(groups)
    under_way: dict[concurrent.futures.Future[float], list[Run]] = {}
    while True:
        # No more than can start, so that nothing does after Ctrl-C.
        for group in itertools.islice(waiting, at_once - len(under_way)):
            places = {run.seed: str(run.directory) for run in group}
            config, variant = group[0].experiment.config, group[0].variant
            task = pool.submit(_train_there, config, variant, places, together)
            under_way[task] = group
            started(group)
        if not under_way:
            return
        done, _ = concurrent.futures.wait(
            under_way, timeout=1, return_when=concurrent.futures.FIRST_COMPLETED
        )
        if stop.now():
            raise stop.error("while runs were trained: the same command resumes")
        for task in done:
            group = under_way.pop(task)
            try:
                yield group, task.result()
            except concurrent.futures.process.BrokenProcessPool as error:
                raise RunFailedError(
                    f"The process that trained {group[0].directory} was killed; the "
                    "same command resumes. A lower at_once needs less memory."
                ) from error


def _start_worker(cache: str | None) -> None:
    """Prepares a process that trains; it ends with the one that started it."""
    # While no steps run; all that is kept is on disk.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(PREEMPTED_EXIT_CODE))
    compilation_cache.use(cache)
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was started by another"

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _train_there(
    config: ml_collections.ConfigDict,
    variant: str,
    places: Mapping[int, str],
    together: int,
) -> float:
    """Trains a group in a worker, which keeps the programs of every variant."""
    if variant not in _EXPERIMENTS:
        _EXPERIMENTS[variant] = experiment.build(config)
    exp = _EXPERIMENTS[variant]
    group = [
        Run(variant, seed, epath.Path(directory), exp.with_seed(seed))
        for seed, directory in places.items()
    ]
    return train(group, together)


# Of a worker, by variant.
_EXPERIMENTS: dict[str, Experiment] = {}
