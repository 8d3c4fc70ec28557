"""The a of learned residuals x + a F(x), block by block."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dresnet_jax.errors import UserError
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState

# The a of each block, [channels], or [1] where it is one number: {block: array}.
Scales = dict[int, np.ndarray]


def scales(exp: Experiment, state: TrainState) -> Scales:
    """Returns the a of each block, averaged over steps where the run averages.

    Raises:
      UserError: residuals are not scaled.
    """
    blocks = exp.model.spec.connections.topology.blocks
    of_blocks = {i: state.eval_params[f"block_{i}"] for i in blocks}
    result = {
        i: np.asarray(own["scale"]) for i, own in of_blocks.items() if "scale" in own
    }
    if not result:
        raise UserError(
            f"{exp.config.model.name} has no learned residuals: model.residual_scale "
            "is none."
        )
    return result


def table(scales: Scales) -> str:
    """Returns a row per block: its mean, least and largest a, and the mean of |a|."""
    lines = ["block      mean     least   largest  mean |a|"]
    for i, a in scales.items():
        values = a.mean(), a.min(), a.max(), abs(a).mean()
        lines.append(f"{i:5d}" + "".join(f"{x:10.4f}" for x in values))
    return "\n".join(lines)


def draw(scales: Scales) -> Figure:
    """Draws the a of learned residuals by block: each channel, and the mean |a|."""
    size = 2 + 0.5 * len(scales), 4
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    blocks = list(scales)
    for i, result in scales.items():
        # In a row from low to high, so that all are seen.
        places = i + np.linspace(-0.3, 0.3, len(result)) if len(result) > 1 else [i]
        axis.plot(places, np.sort(result), ".", color="tab:blue", markersize=3)
    # F may have either sign, so that the mean of a says little.
    means = [abs(result).mean() for result in scales.values()]
    axis.plot(blocks, means, "D", color="tab:orange", label="mean of |a|")
    axis.axhline(0, color="grey", linestyle="--", label="an identity")
    axis.set(xticks=blocks, xlabel="block", ylabel="a of x + a F(x)")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure
