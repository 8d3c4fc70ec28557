"""The state of a run, and the programs that make and change it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dresnet_jax.models.backbone import Backbone
from dresnet_jax.training import sharding
from dresnet_jax.training.metrics import Metrics


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes, and all that a checkpoint holds.

    Attributes:
      step: steps done, int32 scalar.
      key: of the run; never changes.
      params: float32 parameters.
      batch_stats: running averages of the norms.
      opt_state: optax's.
      ema_params: averaged parameters, or None where the config asks for none.
      running: metrics since the last log line.
      model: the network (static).
      optimizer: the optax transformation (static).
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema_params: Any
    running: Metrics
    model: Backbone = flax.struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = flax.struct.field(pytree_node=False)

    @property
    def eval_params(self) -> Any:
        """The parameters that are evaluated: the averaged ones where there are."""
        return self.params if self.ema_params is None else self.ema_params

    @property
    def variables(self) -> dict[str, Any]:
        """As the network takes them, by Flax's collections."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The same, with the parameters that are evaluated."""
        return {"params": self.eval_params, "batch_stats": self.batch_stats}

    @property
    def learned(self) -> tuple[Any, Any, optax.OptState, Any]:
        """What a step computes, its metrics aside."""
        return self.params, self.batch_stats, self.opt_state, self.ema_params


def num_parameters(params: Any) -> int:
    """Counts the numbers in a tree of arrays, or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def is_finite(tree: Any, xp: Any = jnp) -> jax.Array:
    """Checks whether no number of a tree is infinite or NaN, bool scalar.

    `xp` is numpy, for arrays that are the host's own, or its like of JAX.
    """
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return xp.stack([xp.isfinite(leaf).all() for leaf in leaves]).all()


def all_finite(state: TrainState, mesh: Mesh) -> bool:
    """Checks whether a state is worth keeping: all its numbers are finite."""
    if sharding.platform(mesh) == "cpu" and jax.process_count() == 1:
        # Nothing is copied, and nothing has to be compiled.
        return bool(is_finite(state.learned, np))
    return bool(_is_finite(state.learned))


_is_finite = jax.jit(is_finite)


@dataclasses.dataclass
class Programs:
    """What was compiled or counted for experiments that share it, None until then.

    Attributes:
      create_state: makes a fresh state from a key, and the state's shapes.
      evaluate: evaluates a batch.
      train: training steps, by the number of seeds and of steps.
      flops: of a training step on each device.
      connection_flops: those of them that connections take.
    """

    create_state: tuple[Callable[[jax.Array], TrainState], TrainState] | None = None
    evaluate: Callable[..., Any] | None = None
    train: dict[tuple[int, int], jax.stages.Compiled] = dataclasses.field(
        default_factory=dict
    )
    flops: float | None = None
    connection_flops: float | None = None
