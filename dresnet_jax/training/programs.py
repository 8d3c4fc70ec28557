"""The compiled programs of a run, each compiled once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from dresnet_jax.training.state import TrainState


@dataclasses.dataclass
class Programs:
    """What was compiled or counted for experiments that share it, None until then.

    Attributes:
      create_state: makes a fresh state from a key, and the state's shapes.
      is_finite: reports whether a state holds finite numbers alone.
      evaluate: evaluates a batch.
      train: training steps, by the number of seeds and of steps.
      flops: of a training step on each device.
      connection_flops: those of them that connections take.
    """

    create_state: tuple[Callable[[jax.Array], TrainState], TrainState] | None = None
    is_finite: Callable[[TrainState], bool] | None = None
    evaluate: Callable[..., Any] | None = None
    train: dict[tuple[int, int], jax.stages.Compiled] = dataclasses.field(
        default_factory=dict
    )
    flops: float | None = None
    connection_flops: float | None = None
