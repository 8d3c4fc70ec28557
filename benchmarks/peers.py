"""What others have made, in the form in which `benchmark connections` measures it."""

from collections.abc import Callable, Mapping

import ml_collections
from flax import linen as nn

from benchmarks.denseformer import DepthWeightedAverage
from dresnet_jax.errors import UserError

# Schemes that take the place of our connections in a stage.
SCHEMES: Mapping[str, type[nn.Module]] = {"denseformer": DepthWeightedAverage}


def pytorch_steps(
    config: ml_collections.ConfigDict, unit: str
) -> dict[str, dict[str, Callable[[], object]]]:
    """Training steps of the original model, by memory layout and form.

    Args:
      config: of a run; image size, batch, width and classes are read from it.
      unit: the name of the form without connections.

    Raises:
      UserError: PyTorch is not installed, or the config is of another model.
    """
    try:
        from benchmarks import pytorch_original
    except ModuleNotFoundError as error:
        raise UserError(
            f"--peers of a model needs {error.name}: "
            "pip install -r requirements-peers.txt"
        ) from error
    if tuple(config.model.blocks_per_stage) != (2, 2, 2, 2):
        raise UserError("--peers: the original model has 4 stages of 2 blocks.")
    return {
        name: {
            form: pytorch_original.training_step(
                connected=form != unit,
                channels_last=channels_last,
                batch=config.data.batch_size,
                side=config.data.image_size,
                classes=config.data.num_classes,
                width=config.model.width,
            )
            for form in (unit, "per edge")
        }
        for name, channels_last in (
            ("PyTorch", False),
            ("PyTorch, channels last", True),
        )
    }
