"""What a run reports while it trains: lines of JSON, TensorBoard, the screen."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging
from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import directory_check
from tqdm import tqdm

from dresnet_jax.training import compilation, json_files, metrics

# Seconds between two lines of training where standard error is no terminal, at least;
# metrics.jsonl has them all.
_LINE_SECONDS = 5.0
# Seconds between two writings of TensorBoard's file, at least.
_BOARD_SECONDS = 120.0


class Log:
    """Writes a run's metrics; use as a context manager.

    `metrics.jsonl` holds one JSON object a line, each with its `step`. A run that
    resumes from a checkpoint first drops the lines after it, and a new run drops all,
    so that no line is lost or stands twice. Of several processes one writes.
    What cannot be written is said once and left out: training continues.
    """

    def __init__(
        self, directory: epath.Path, start_step: int, num_steps: int, *, writes: bool
    ) -> None:
        """Opens the files.

        Args:
          directory: of the run.
          start_step: steps already done, whose lines are kept; 0 keeps none.
          num_steps: of the whole run.
          writes: whether this process is the one that writes.
        """
        self._writes = writes
        if not writes:
            return
        # A new run also writes the line of step 0, that of the gates, again.
        first = start_step + 1 if start_step else 0
        self._reported: set[str] = set()
        self._lines = _Lines(directory, first)
        self._try("metrics.jsonl", self._lines.open)
        self._board: _Board | None = None
        self._try("tensorboard", lambda: self._open_board(directory, first))
        self._start, self._end = start_step, num_steps
        self._started = self._shown = compilation.clock()
        self._bar = tqdm(
            total=num_steps,
            initial=start_step,
            unit="step",
            disable=not sys.stderr.isatty(),
        )

    def _open_board(self, directory: epath.Path, first: int) -> None:
        self._board = _Board(str(directory / "tensorboard"), first)

    def _try(self, what: str, write: Callable[[], object]) -> bool:
        """Writes; whether it could."""
        try:
            write()
        # Of a full disk, a lost bucket and more, each of a type of its own.
        except Exception as error:
            if what not in self._reported:
                self._reported.add(what)
                logging.warning(
                    "%s cannot be written: %s. training continues without it.",
                    what,
                    getattr(error, "strerror", None) or error,
                )
            return False
        return True

    def __enter__(self) -> "Log":
        """Nothing but the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes every file."""
        if not self._writes:
            return
        self._bar.close()
        self._try("metrics.jsonl", self._lines.close)
        if self._board is not None:
            self._try("tensorboard", self._board.close)

    def advance(self, step: int) -> None:
        """Moves the progress bar to a step."""
        if not self._writes:
            return
        self._bar.update(step - self._bar.n)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line, and shows it, with the time that is left."""
        if not self._writes:
            return
        self._keep({"step": step, **scalars})
        self._plot(step, scalars)
        text = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        line = f"step {step:6d}  {text}"
        if not self._bar.disable:
            self._bar.write(line, file=sys.stdout)
            return
        now = compilation.clock()
        is_progress = "train_loss" in scalars
        is_first, is_last = self._shown == self._started, step == self._end
        if not is_progress:
            print(line, flush=True)
        elif is_first or is_last or now - self._shown >= _LINE_SECONDS:
            pace = (now - self._started) / max(1, step - self._start)
            left = tqdm.format_interval(pace * (self._end - step))
            print(f"{line}  left {left}", flush=True)
            self._shown = now

    def write_gates(
        self, step: int, openings: Mapping[int, Mapping[int, float]]
    ) -> None:
        """Writes every gate's F(w): a line of its own, and a curve in TensorBoard."""
        if not openings or not self._writes:
            return
        self._keep({"step": step, "gates": openings})
        curves = {
            f"gates/{block}_from_{source}": value
            for block, sources in openings.items()
            for source, value in sources.items()
        }
        self._plot(step, curves)

    def _keep(self, entry: Mapping[str, Any]) -> None:
        self._try("metrics.jsonl", lambda: self._lines.write(entry))

    def _plot(self, step: int, scalars: Mapping[str, float]) -> None:
        board = self._board
        if board and not self._try("tensorboard", lambda: board.add(step, scalars)):
            # What it still holds could not be written either.
            self._board = None


class _Lines:
    """`metrics.jsonl`, of which every line is there whole or not at all."""

    def __init__(self, directory: epath.Path, first: int) -> None:
        """Opens nothing yet.

        Args:
          directory: of the run.
          first: lines of this step, and of later ones, are dropped at first.
        """
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
        """Adds a line."""
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
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class _Board:
    """TensorBoard's file, written by whom it belongs to, and by no thread of its own.

    `SummaryWriter` has one, with a queue: where the thread has died of a full disk, the
    queue fills, and whoever adds to it waits for ever.
    """

    def __init__(self, directory: str, first: int) -> None:
        """Makes a file; what earlier ones show of step `first` and later is hidden."""
        directory_check(directory)
        self._writer = EventsWriter(f"{directory}/events")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(step=first, file_version="brain.Event:2"))
        self._writer.write_event(Event(step=first, session_log=start))
        self._flushed = time.monotonic()

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        for name, value in scalars.items():
            event = Event(step=step, summary=summary.scalar(name, value))
            event.wall_time = time.time()
            self._writer.write_event(event)
        if time.monotonic() - self._flushed >= _BOARD_SECONDS:
            self._flushed = time.monotonic()
            self._writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
