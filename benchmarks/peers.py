"""What others have made, in the form in which `benchmark connections` measures it."""

from collections.abc import Callable, Mapping

import ml_collections
from flax import linen as nn

from benchmarks.denseformer import DepthWeightedAverage
from dresnet_jax.costs.connection_costs import PLAIN
from dresnet_jax.errors import UserError
from dresnet_jax.models import zoo

Schemes = Mapping[str, Callable[..., nn.Module]]

Steps = Mapping[str, Mapping[str, Callable[[], object]]]


def of(
    config: ml_collections.ConfigDict, model: str | None, target: str
) -> tuple[Schemes, Steps]:
    """Returns schemes to measure instead of ours, and steps to measure with ours.

    Args:
      config: of a run; image size, batch, width and classes are read from it.
      model: what is measured; None for a stage.
      target: where.

    Raises:
      UserError: PyTorch is not installed, or is asked to run elsewhere.
    """
    if model is None:
        return {"denseformer": DepthWeightedAverage}, {}
    if target != "cpu":
        raise UserError("--peers of a model run here, not on a --target.")
    return {}, _pytorch_steps(config)


def _pytorch_steps(config: ml_collections.ConfigDict) -> Steps:
    try:
        from benchmarks import pytorch_original
    except ModuleNotFoundError as error:
        raise UserError(
            f"--peers of a model needs {error.name}: "
            "pip install -r requirements-peers.txt"
        ) from error
    if zoo.blocks_per_stage(config.model) != (2, 2, 2, 2):
        raise UserError("--peers: the original model has 4 stages of 2 blocks.")
    return {
        name: {
            form: pytorch_original.training_step(
                connected=form != PLAIN,
                channels_last=channels_last,
                batch=config.data.batch_size,
                side=config.data.image_size,
                classes=config.data.num_classes,
                width=round(zoo.width(config.model)),
            )
            for form in (PLAIN, "per edge")
        }
        for name, channels_last in (
            ("PyTorch", False),
            ("PyTorch, channels last", True),
        )
    }
