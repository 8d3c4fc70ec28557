"""The a of learned residuals x + a F(x), block by block."""

import numpy as np

from dresnet_jax.errors import UserError
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState

# The a of each block, [channels], or [1] where it is one number: {block: array}.
Scales = dict[int, np.ndarray]


def scales(parts: Experiment, state: TrainState) -> Scales:
    """The a of each block, averaged over steps where the run averages.

    Raises:
      UserError: residuals are not scaled.
    """
    blocks = parts.model.spec.connections.topology.blocks
    of_blocks = {i: state.eval_params[f"block_{i}"] for i in blocks}
    found = {
        i: np.asarray(own["scale"]) for i, own in of_blocks.items() if "scale" in own
    }
    if not found:
        raise UserError(
            f"{parts.config.model.name} has no learned residuals: model.residual_scale "
            "is none."
        )
    return found


def table(scales: Scales) -> str:
    """A row per block: its mean, least and largest a, and the mean of |a|."""
    lines = ["block      mean     least   largest  mean |a|"]
    lines += [
        f"{i:5d}"
        + "".join(f"{x:10.4f}" for x in (a.mean(), a.min(), a.max(), abs(a).mean()))
        for i, a in scales.items()
    ]
    return "\n".join(lines)
