"""What a run reports while it trains: lines of JSON, TensorBoard, the screen."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from absl import logging
from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import directory_check
from tqdm import tqdm

from dresnet_jax.training import compilation, json_files, metrics, processes

# Seconds between two lines of training where standard error is no terminal, at least;
# metrics.jsonl has them all.
_LINE_SECONDS = 5.0
# Seconds between two writings of TensorBoard's file, at least.
_BOARD_SECONDS = 120.0


class Log(contextlib.AbstractContextManager["Log"]):
    """Writes a run's metrics; use as a context manager.

    `metrics.jsonl` holds one JSON object a line, each with its `step`. A run that
    resumes from a checkpoint first drops the lines after it, and a new run drops all,
    so that no line is lost or stands twice. Of several processes the first writes.
    What cannot be written is said once and left out: training continues.
    """

    def __init__(self, directory: epath.Path, start_step: int, num_steps: int) -> None:
        """Opens the files, and drops the lines after the steps already done."""
        # A new run also writes the line of step 0, that of the gates, again.
        first = start_step + 1 if start_step else 0
        makers = WRITERS.items() if processes.is_first() else ()
        self._reported: set[str] = set()
        self._writers = {name: make(directory, first) for name, make in makers}
        self._each(lambda writer: writer.open())
        self._start, self._end = start_step, num_steps
        self._started = self._shown = compilation.clock()
        self._bar = tqdm(
            total=num_steps,
            initial=start_step,
            unit="step",
            disable=not (processes.is_first() and sys.stderr.isatty()),
        )

    def _each(self, action: Callable[["Writer"], object]) -> None:
        """Has each writer do something; what cannot be written is said once."""
        for name, writer in self._writers.items():
            try:
                action(writer)
            # Of a full disk, a lost bucket and more, each of a type of its own.
            except Exception as error:
                if name not in self._reported:
                    self._reported.add(name)
                    logging.warning(
                        "%s cannot be written: %s. Training continues without it.",
                        name,
                        getattr(error, "strerror", None) or error,
                    )

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._each(lambda writer: writer.close())

    def advance(self, step: int) -> None:
        """Moves the progress bar to a step."""
        self._bar.update(step - self._bar.n)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line, and shows it, with the time that is left."""
        self._each(lambda writer: writer.write({"step": step, **scalars}))
        text = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        line = f"step {step:6d}  {text}"
        if not self._bar.disable:
            self._bar.write(line, file=sys.stdout)
            return
        now = compilation.clock()
        is_progress = "train_loss" in scalars
        is_first, is_last = self._shown == self._started, step == self._end
        if not is_progress:
            processes.say(line)
        elif is_first or is_last or now - self._shown >= _LINE_SECONDS:
            pace = (now - self._started) / max(1, step - self._start)
            left = tqdm.format_interval(pace * (self._end - step))
            processes.say(f"{line}  left {left}")
            self._shown = now

    def write_gates(self, step: int, values: Mapping[int, Mapping[int, float]]) -> None:
        """Writes every gate's F(w): a line of its own, and a curve in TensorBoard."""
        if values:
            self._each(lambda writer: writer.write({"step": step, "gates": values}))


class Writer(Protocol):
    """Writes the metrics of a run in one form; may raise what a file system raises."""

    def open(self) -> None:
        """Makes ready what is written to."""

    def write(self, entry: Mapping[str, Any]) -> None:
        """Writes a `step`, with scalars or `gates`, {reader: {source: F(w)}}."""

    def close(self) -> None:
        """Writes what is left."""


class _Lines:
    """`metrics.jsonl`, of which every line is there whole or not at all.

    Lines of the step `first`, and of later ones, are dropped at first.
    """

    def __init__(self, directory: epath.Path, first: int) -> None:
        self._directory = directory
        self._path = directory / metrics.LINES
        self._first: float = first
        self._file: Any = None
        self._size = 0

    def open(self) -> None:
        """Drops the lines that the run will write again; sets damaged ones aside."""
        lines, damaged = metrics.read_all(self._directory)
        if damaged:
            aside = self._directory / "damaged" / metrics.LINES
            aside.parent.mkdir(exist_ok=True)
            aside.write_text("".join(f"{line}\n" for line in damaged.values()))
            logging.warning("Damaged lines of %s were moved to %s.", self._path, aside)
        kept = [line for line in lines if line["step"] < self._first]
        json_files.write_lines(self._path, kept)
        self._file, self._size = self._path.open("a"), self._path.stat().length
        # Opened again, after it could not be written, it has lost no line.
        self._first = float("inf")

    def write(self, entry: Mapping[str, Any]) -> None:
        if self._file is None:
            self.open()
        line = json.dumps(entry) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except Exception:
            file, self._file = self._file, None
            with contextlib.suppress(Exception):
                file.close()
            with contextlib.suppress(Exception):
                os.truncate(self._path, self._size)
            raise
        self._size += len(line.encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Board:
    """TensorBoard's file, written by whom it belongs to, and by no thread of its own.

    `SummaryWriter` has one, with a queue: where the thread has died of a full disk, the
    queue fills, and whoever adds to it waits for ever. What earlier files show of the
    step `first`, and of later ones, is hidden.
    """

    def __init__(self, directory: epath.Path, first: int) -> None:
        self._directory = f"{directory}/tensorboard"
        self._first = first
        self._writer: EventsWriter | None = None

    def open(self) -> None:
        directory_check(self._directory)
        writer = EventsWriter(f"{self._directory}/events")
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(step=self._first, file_version="brain.Event:2"))
        writer.write_event(Event(step=self._first, session_log=start))
        self._writer, self._flushed = writer, time.monotonic()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Adds a point to each curve; to none after one could not be added."""
        if self._writer is None:
            return
        # What it still holds could not be written either.
        writer, self._writer = self._writer, None
        for name, value in _curves(entry).items():
            event = Event(step=entry["step"], summary=summary.scalar(name, value))
            event.wall_time = time.time()
            writer.write_event(event)
        if time.monotonic() - self._flushed >= _BOARD_SECONDS:
            self._flushed = time.monotonic()
            writer.flush()
        self._writer = writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _curves(entry: Mapping[str, Any]) -> dict[str, float]:
    """Names the numbers of an entry, one for each gate."""
    if "gates" not in entry:
        return {name: value for name, value in entry.items() if name != "step"}
    return {
        f"gates/{block}_from_{source}": value
        for block, sources in entry["gates"].items()
        for source, value in sources.items()
    }


# What writes metrics, by the name of what it writes in the run directory.
WRITERS: dict[str, Callable[[epath.Path, int], Writer]] = {
    metrics.LINES: _Lines,
    "tensorboard": _Board,
}
