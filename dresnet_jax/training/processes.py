"""The processes of a run: how they meet, agree, and stop at the same step."""

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from dresnet_jax import signals
from dresnet_jax.errors import (
    PREEMPTED_EXIT_CODE,
    STOPPED_LINE,
    RunFailedError,
    UserError,
)
from dresnet_jax.training import sharding

T = TypeVar("T")

# After the time-out, until JAX's own, seconds.
_GRACE = 60

# How long a process that was told to stop waits for the others, seconds.
_PATIENCE = 10

# Of an error's text that process 0 hands to the others, bytes.
_TEXT_SIZE = 1000


class PreemptedError(RunFailedError):
    """The run was told to stop and is saved: the same command resumes it."""

    exit_code = PREEMPTED_EXIT_CODE


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: int,
    environment: Mapping[str, str],
) -> None:
    """Meets the other processes of the run; nothing where this one is alone.

    Where no coordinator is given, JAX looks for one that started this process: Cloud
    TPU, GKE, Slurm or Open MPI.

    Args:
      coordinator: host and port of process 0.
      num_processes: of the run.
      process_id: of this one, from 0.
      timeout: how long it waits for the others, seconds.
      environment: the variables in which Open MPI 5 gives a process its number.

    Where the others do not come, it says so and the process ends, since JAX would end
    it without a clear word.

    Raises:
      UserError: one of the three is given without the others, or out of range.
    """
    given = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise UserError(f"{' and '.join(missing)} must be given with the others.")
    if not missing and not 0 <= (process_id or 0) < (num_processes or 0):
        raise UserError(
            f"--process_id={process_id} must be from 0 to --num_processes - 1, and "
            f"--num_processes={num_processes} above 0."
        )
    where = f" at {coordinator}" if coordinator else ""
    met = threading.Event()
    threading.Thread(target=_wait_for, args=(met, timeout, where), daemon=True).start()
    result = _open_mpi_5(environment) if missing else None
    if result:
        coordinator, num_processes, process_id = result
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # What a person gave stands, wherever this process was started.
            cluster_detection_method=None if missing and not result else "deactivate",
            initialization_timeout=timeout + _GRACE,
        )
    except RuntimeError as error:
        # A program that called a command after it had used JAX: it runs alone.
        if not missing or result or "must be called before" not in str(error):
            raise
    except ValueError as error:
        # What JAX says where nothing is given and nothing started this process.
        if not missing or "coordinator_address should be defined" not in str(error):
            raise UserError(f"The processes cannot meet: {error}") from error
    finally:
        met.set()


def _wait_for(met: threading.Event, timeout: int, where: str) -> None:
    """Ends the process where the others do not come, or not soon after a SIGTERM."""
    deadline, is_told = time.monotonic() + timeout, False
    while not met.wait(0.5):
        if not is_told and signal.SIGTERM in signal.sigpending():
            deadline, is_told = min(deadline, time.monotonic() + _PATIENCE), True
        if time.monotonic() > deadline:
            message = f"error: Not all processes met{where} within --join_timeout.\n"
            sys.stderr.write(STOPPED_LINE if is_told else message)
            sys.stderr.flush()
            os._exit(PREEMPTED_EXIT_CODE if is_told else RunFailedError.exit_code)


def _open_mpi_5(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """Coordinator, number of processes and this one's where Open MPI 5 started it.

    JAX (0.10.2) knows Open MPI by a variable that only versions before 5 set. Version 5
    names the host and the process of `mpirun` in PMIX_NAMESPACE, prterun-HOST-PID@JOB;
    like JAX with version 4, this takes it that process 0 runs on that host.
    """
    match = re.fullmatch(
        r"prte(?:run)?-(.+)-(\d+)@(\d+)", environment.get("PMIX_NAMESPACE", "")
    )
    size = environment.get("OMPI_COMM_WORLD_SIZE")
    if match is None or size is None or "OMPI_MCA_orte_hnp_uri" in environment:
        return None
    host, pid, job = match.groups()
    if environment["OMPI_COMM_WORLD_LOCAL_SIZE"] == size:
        host = "localhost"
    # A port of the range that JAX takes with version 4, the same on all processes.
    port = 61440 + (int(pid) + int(job)) % 4096
    return f"{host}:{port}", int(size), int(environment["OMPI_COMM_WORLD_RANK"])


def require_seen(workdir: epath.Path) -> None:
    """Checks that every process sees what the first one has written.

    Raises:
      UserError: the run directory is another one on some machine.
    """
    if jax.process_count() == 1:
        return
    is_there = np.asarray((workdir / "config.json").exists())
    blind = np.flatnonzero(~multihost_utils.process_allgather(is_there))
    if len(blind):
        raise UserError(
            f"workdir {workdir} is not the same for all: process {blind[0]} does not "
            "see what process 0 wrote there. Give a bucket, or a directory that all "
            "machines share."
        )


def description() -> str:
    """Returns what was found, in one line."""
    return (
        f"processes: {jax.process_count()}, devices: {jax.device_count()}, "
        f"slices: {sharding.num_slices(jax.devices())}"
    )


def say(line: str) -> None:
    """Prints a line, once."""
    if is_first():
        print(line, flush=True)


def is_first() -> bool:
    """Checks whether this is the process that writes and prints."""
    return jax.process_index() == 0


def first_alone(function: Callable[[], T]) -> T | None:
    """Runs a function on process 0; where it fails, every process stops.

    Returns:
      What it returned, on process 0; None on the others.

    Raises:
      UserError: process 0 found a wrong value.
      RunFailedError: process 0 could not do it.
    """
    if jax.process_count() == 1:
        return function()
    result, failure = None, None
    if is_first():
        try:
            result = function()
        except (UserError, RunFailedError, OSError) as error:
            failure = error
    text = "" if failure is None else f"{type(failure).__name__}: {failure}"
    padded = text.encode()[:_TEXT_SIZE].ljust(_TEXT_SIZE, b"\0")
    sent = multihost_utils.broadcast_one_to_all(np.frombuffer(padded, np.uint8))
    if failure is not None:
        raise failure
    if text := bytes(np.asarray(sent)).rstrip(b"\0").decode(errors="replace"):
        kind, _, message = text.partition(": ")
        of_user = kind == UserError.__name__
        raise (UserError if of_user else RunFailedError)(f"Process 0: {message}")
    return result


def agreed(value: int) -> int:
    """Returns the value of process 0, on every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


class Stop:
    """SIGTERM and Ctrl-C, obeyed between two steps, the same on every process.

    An exception out of a signal's handler can be lost in a callback of JAX.
    """

    def __init__(self) -> None:
        self.by_ctrl_c = False
        self._call = -1
        self._asked = threading.Event()

    def now(self) -> bool:
        """Checks whether to save and stop.

        One signal to one process stops all of them, and so each has to ask equally
        often: once after each call.
        """
        self._call += 1
        if jax.process_count() == 1:
            return self._asked.is_set()
        return multihost_utils.reached_preemption_sync_point(self._call)

    def error(self, words: str) -> BaseException:
        """Returns what ends the run; `words` say where, and what resumes it."""
        if self.by_ctrl_c:
            return KeyboardInterrupt(words)
        return PreemptedError(f"told to stop {words}")

    def on_signal(self, number: int, _: object) -> None:
        """Remembers a signal; a second Ctrl-C acts at once."""
        self.by_ctrl_c = number == signal.SIGINT
        if self.by_ctrl_c:
            signal.signal(number, signals.interrupt)
        self._asked.set()
        if jax.process_count() > 1:
            # JAX reports a SIGTERM to the other processes.
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Catches the signals that stop a run; a second Ctrl-C acts at once.

    A second SIGTERM does not: it would cut the save that the first one asked for.
    """
    stop = Stop()
    alone = jax.process_count() == 1
    numbers = [signal.SIGINT, signal.SIGTERM] if alone else [signal.SIGINT]
    with signals.handled(numbers, stop.on_signal):
        yield stop
