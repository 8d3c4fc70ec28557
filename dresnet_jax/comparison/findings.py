"""The questions of a comparison that its numbers answer, each in a sentence or two."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# p, corrected for the number of comparisons, below which a difference is called clear.
ALPHA = 0.05
# Mean change of F(w) in the last quarter of a run, below which gates are called solid.
SOLID = 0.01
# F(w) at the end from which a connection is called open, and below which closed.
OPEN, CLOSED = 0.75, 0.25


def findings(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns what a report answers besides its main question.

    Args:
      result: the report, before numbers that are not finite are replaced.

    Returns:
      For each the `question` that a reader would ask, the `answer` of the numbers, and
      the name of the `figure` that shows it.
    """
    return [*_against_reference(result), *_of_gates(result)]


def verdict(row: Mapping[str, Any], *, in_points: bool = True) -> str:
    """Returns how sure one may be of a comparison, in words.

    Its interval is written in percentage points, or as it is.
    """
    p = row["p_corrected"]
    if np.isnan(p):
        what = "a single seed" if row["seeds"] == 1 else "the same in all seeds, which"
        return f"{what} says nothing about chance"
    low, high = (
        f"{100 * row[end]:+.2f}" if in_points else f"{row[end]:+.4f}"
        for end in ("low", "high")
    )
    over = f"over {row['seeds']} seeds (95 % interval {low} to {high}"
    if p >= ALPHA > row["p"]:
        return (
            f"no clear difference {over} and {p_in_words(row['p'])} of this comparison "
            f"alone, but {p_in_words(p)} corrected for all comparisons here, one of "
            "which may well look like that by chance)"
        )
    kind = "a clear difference" if p < ALPHA else "no clear difference"
    return f"{kind} {over}, {p_in_words(p)} corrected for all comparisons here)"


def p_in_words(p: float) -> str:
    """Returns a p-value as people write it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _against_reference(result: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    main = result["main"]
    for row in result["comparisons"]:
        mean = result["variants"][main].get(row["metric"], {}).get("mean")
        difference = row["difference"]
        way = "above" if difference >= 0 else "below"
        if row["metric"] == "train_loss":
            yield {
                "question": f"Does {main} converge to a lower training loss?",
                "answer": f"Its mean training loss at the end, {mean:.4f}, is "
                f"{abs(difference):.4f} {way} that of {row['reference']}: "
                f"{verdict(row, in_points=False)}.",
                "figure": "curves",
            }
        if row["metric"] == "overfit":
            yield {
                "question": f"Does {main} overfit more?",
                "answer": "Its training accuracy minus its test accuracy is "
                f"{100 * mean:+.2f} points, {100 * abs(difference):.2f} points {way} "
                f"that of {row['reference']}: {verdict(row)}.",
                "figure": "splits",
            }


def _of_gates(result: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    gated = {name: v for name, v in result["variants"].items() if "gates" in v}
    if not gated:
        return
    still = [name for name, v in gated.items() if v["gate_drift"]["mean"] < SOLID]
    solid = [name for name, v in gated.items() if v["solid"] and name not in still]
    moved = "; ".join(
        f"{name} {variant['gate_drift']['mean']:.3f} "
        f"({variant['late_drift']['mean']:.3f})"
        for name, variant in gated.items()
    )
    yield {
        "question": "How far do the gates move, and do they stop changing?",
        "answer": "Mean change of F(w) over the run, and in its last quarter: "
        f"{moved}. Below {SOLID} in the last quarter, and so solid: "
        f"{'; '.join(solid) or 'none'}. Below {SOLID} over the whole run, and so never "
        f"moved: {'; '.join(still) or 'none'}.",
        "figure": "drift",
    }
    learnt = [
        f"{name} from {variant['sharpness_at_start']:g} to "
        f"{variant['gate_sharpness']['mean']:.3f}"
        for name, variant in gated.items()
        if "gate_sharpness" in variant
    ]
    if learnt:
        yield {
            "question": "Does the sharpness k of gauss gates learn?",
            "answer": f"Mean of k at the start and at the end: {'; '.join(learnt)}.",
            "figure": "gate_functions",
        }
    if (main := result["main"]) in gated:
        yield {
            "question": f"Which connections does {main} keep?",
            "answer": _kept(gated[main]["gates"]),
            "figure": "drift",
        }


def _kept(gates: Mapping[str, Mapping[str, float]]) -> str:
    """Which connections are open, and whether distance matters."""
    edges = [
        (gate, int(i), int(k)) for i, row in gates.items() for k, gate in row.items()
    ]
    values = np.array([gate for gate, _, _ in edges])
    distances = np.array([i - k for _, i, k in edges])
    most = ", ".join(
        f"block {i} from {k} ({gate:.2f})"
        for gate, i, k in sorted(edges, reverse=True)[:3]
    )
    middle = np.median(distances)
    near, far = values[distances <= middle], values[distances > middle]
    of_far = (
        f" Sources up to {middle:g} blocks back end at {near.mean():.2f} on average, "
        f"those farther back at {far.mean():.2f}."
        if len(far)
        else ""
    )
    return (
        f"Of {len(edges)} connections {(values >= OPEN).sum()} end at {OPEN} or above "
        f"and {(values < CLOSED).sum()} below {CLOSED}; the widest open: {most}."
        f"{of_far}"
    )
