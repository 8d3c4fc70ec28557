"""Shows how far the runs of a comparison are, and how long the rest will take."""

import sys
import time
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from dresnet_jax.comparison.grid import FAILED, Run


class Progress:
    """A line for each run that starts and ends; on a terminal a bar too.

    Use as a context manager.
    """

    def __init__(
        self, missing: Sequence[Run], total: int, step_seconds: Mapping[str, float]
    ) -> None:
        """Starts the clock.

        Args:
          missing: the runs that are to be trained.
          total: runs of the comparison, those that were done before included.
          step_seconds: measured seconds of a training step of each variant, by which
            the time that is left is estimated.
        """
        self._step_seconds = step_seconds
        self._total = total
        self._start = time.monotonic()
        self._numbers = {
            (run.variant, run.seed): number
            for number, run in enumerate(missing, total - len(missing) + 1)
        }
        self._left = sum(map(self._expected, missing))
        self._done = 0.0
        self._bar = tqdm(
            total=total,
            initial=total - len(missing),
            unit="run",
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def started(self, group: Sequence[Run]) -> None:
        """Reports that runs are being trained."""
        self._say(f"started  {self._names(group)}")

    def ended(self, group: Sequence[Run], seconds: float) -> None:
        """Reports that runs of one program have ended, well or not."""
        expected = sum(map(self._expected, group))
        self._done += expected
        self._left -= expected
        failed = sum((run.directory / FAILED).exists() for run in group)
        how = f", {failed} of {len(group)} failed" if failed else ""
        # By the pace so far, which holds what a step's time does not.
        pace = (time.monotonic() - self._start) / self._done
        left = tqdm.format_interval(round(pace * self._left))
        took = tqdm.format_interval(seconds)
        self._say(f"ended    {self._names(group)}, in {took}{how}; {left} left")
        self._bar.update(len(group))

    def _expected(self, run: Run) -> float:
        return run.experiment.num_steps * self._step_seconds[run.variant]

    def _names(self, group: Sequence[Run]) -> str:
        numbers = [self._numbers[run.variant, run.seed] for run in group]
        number = str(numbers[0])
        if len(group) > 1:
            number = f"{min(numbers)} to {max(numbers)}"
        seeds = ", ".join(str(run.seed) for run in group)
        return f"{number} of {self._total}: {group[0].variant}, seed {seeds}"

    def _say(self, line: str) -> None:
        tqdm.write(line)
        sys.stdout.flush()
