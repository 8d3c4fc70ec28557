"""Statistics of repeated runs: means, paired differences, and how sure one may be."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

# Of all intervals.
LEVEL = 0.95
# Between what a figure may lie, by its kind.
SHARE, NOT_NEGATIVE, ANY = (0.0, 1.0), (0.0, np.inf), (-np.inf, np.inf)
# Of figures in float32, with some room, as a part of them.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean of a figure over runs.

    Attributes:
      mean: of the runs.
      low: lower end of the interval that holds the true mean with `LEVEL` (Student's
        t); not a number for a single run.
      high: its upper end.
      runs: how many there are.
    """

    mean: float
    low: float
    high: float
    runs: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one variant is above another on the same seeds.

    Attributes:
      estimate: of the mean difference.
      p: of Student's paired t-test, two-sided: how often as large a mean difference
        would be seen if there were none.
      effect: the mean difference in standard deviations of the differences (Cohen's
        d_z).

    Where all seeds differ by the same, there is no spread to judge by: as after a
    single seed, the interval, p and the effect are then not a number. Where they do not
    differ, p is 1 and the effect 0.
    """

    estimate: Estimate
    p: float
    effect: float


def estimate(
    values: Sequence[float] | np.ndarray, within: tuple[float, float] = ANY
) -> Estimate:
    """Returns the mean of some runs, with its interval.

    Args:
      values: one of each run.
      within: what such a figure can be; the interval is cut there, since the true mean
        lies within, too.
    """
    result = np.asarray(values, np.float64)
    mean, low, high = float(result.mean()), np.nan, np.nan
    if len(result) > 1:
        error = float(stats.sem(result))
        reach = float(stats.t.ppf((1 + LEVEL) / 2, len(result) - 1)) * error
        low, high = np.clip((mean - reach, mean + reach), *within).tolist()
    return Estimate(mean, low, high, len(result))


def summary(
    values: Sequence[float], within: tuple[float, float] = ANY
) -> dict[str, Any]:
    """Returns the fields of `estimate`, and the values."""
    return dataclasses.asdict(estimate(values, within)) | {"values": list(values)}


def paired(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Returns the difference of two variants, seed by seed.

    Args:
      values: of one variant, [seeds].
      reference: of the other, for the same seeds in the same order.

    Raises:
      ValueError: they are not as many.
    """
    differences = np.asarray(
        [a - b for a, b in zip(values, reference, strict=True)], np.float64
    )
    result = estimate(differences)
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if spread <= _ROUNDING * float(np.max(np.abs([values, reference]))):
        if len(differences) > 1 and not differences.any():
            return Difference(result, 1.0, 0.0)
        alone = dataclasses.replace(result, low=np.nan, high=np.nan)
        return Difference(alone, np.nan, np.nan)
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Difference(result, p, result.mean / spread)


def holm(p: Sequence[float]) -> list[float]:
    """Corrects the p of several tests, so that p is the chance of any false finding.

    Holm (1979), "A Simple Sequentially Rejective Multiple Test Procedure". What is not
    a number stays so, and is not counted.
    """
    values = np.asarray(p, np.float64)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    corrected = values.copy()
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected.tolist()


def percent(share: float, sign: str = "-") -> str:
    """Returns a share, or a difference of shares, as a number of hundredths.

    Args:
      share: such as an accuracy.
      sign: "+" to write that of numbers above 0 too.
    """
    return f"{100 * share:{sign}.2f}"


def percent_interval(result: Mapping[str, Any], sign: str = "-") -> str:
    """Formats the interval of an estimate as `percent`; a dash for a single run."""
    if result["low"] is None:
        return "-"
    return f"{percent(result['low'], sign)} to {percent(result['high'], sign)}"
