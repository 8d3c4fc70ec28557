"""Metrics by clu, and their writers: lines of JSON, TensorBoard, the screen."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import flax
from clu import metrics
from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from dresnet_jax.errors import UserError
from dresnet_jax.training import compilation

# Seconds between two lines of training where standard error is no terminal, at least;
# metrics.jsonl has them all.
_LINE_SECONDS = 5.0


@flax.struct.dataclass
class Metrics(metrics.Collection):
    """Mean loss and accuracy over the examples that the mask lets through."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: metrics.Accuracy


class Log:
    """Writes a run's metrics; use as a context manager.

    `metrics.jsonl` holds one JSON object a line, each with its `step`. A run that
    goes on from a checkpoint first drops the lines after it, and one that begins anew
    drops all, so that no line is lost or stands twice. Of several processes one writes.
    """

    def __init__(
        self, workdir: epath.Path, start_step: int, num_steps: int, *, writes: bool
    ) -> None:
        """Opens the files.

        Args:
          workdir: the run directory.
          start_step: steps already done, whose lines are kept; 0 keeps none.
          num_steps: of the whole run.
          writes: whether this process is the one that writes.
        """
        self._writes = writes
        if not writes:
            return
        self._path = workdir / "metrics.jsonl"
        # At step 0 stand the gates, and they are written anew with the run.
        first = start_step + 1 if start_step else 0
        kept = [line for line in read(workdir) if line["step"] < first]
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self._path)
        self._file = self._path.open("a")
        self._start, self._end = start_step, num_steps
        self._started = self._shown = compilation.clock()
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first)
        self._bar = tqdm(
            total=num_steps,
            initial=start_step,
            unit="step",
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> "Log":
        """Nothing but the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes every file."""
        if not self._writes:
            return
        self._bar.close()
        self._file.close()
        self._board.close()

    def advance(self, step: int) -> None:
        """Moves the progress bar to a step."""
        if not self._writes:
            return
        self._bar.update(step - self._bar.n)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line, and shows it, with the time that is left."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
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
        self._file.write(json.dumps({"step": step, "gates": openings}) + "\n")
        self._file.flush()
        for block, sources in openings.items():
            for source, value in sources.items():
                self._board.add_scalar(f"gates/{block}_from_{source}", value, step)


def read(workdir: epath.Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; none where there is no such file.

    A last line that was cut off when the run was killed is left out.

    Raises:
      UserError: another line is damaged.
    """
    path = workdir / "metrics.jsonl"
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    lines = text.splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return [_parse(path, number, line) for number, line in enumerate(whole, start=1)]


def first_gates(workdir: epath.Path) -> dict[int, dict[int, float]]:
    """F(w) of every edge at a run's start; nothing where it was not written."""
    for line in read(workdir):
        if "gates" in line:
            return {
                int(i): {int(k): value for k, value in row.items()}
                for i, row in line["gates"].items()
            }
    return {}


def _parse(path: epath.Path, number: int, line: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
        parsed["step"] + 0
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}, line {number}, is damaged: {line!r:.80}") from None
    return parsed
