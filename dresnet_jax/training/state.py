"""The state of a run, made straight into place on the devices."""

from collections.abc import Callable
from importlib import metadata
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dresnet_jax.data.pipeline import derive_key
from dresnet_jax.models.backbone import Backbone
from dresnet_jax.training import compilation, sharding
from dresnet_jax.training.metrics import Metrics

# A program of many random arrays that runs once: to optimise it takes much longer than
# to run it.
_QUICK: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
if metadata.version("jaxlib") < "0.11":
    # The older way to emit fusions, which newer releases lack, is twice as fast.
    _QUICK["xla_cpu_use_fusion_emitters"] = False
    _QUICK["xla_cpu_parallel_codegen_split_count"] = 1


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
    def learned(self) -> tuple[Any, Any, optax.OptState, Any]:
        """What a step computes, its metrics aside."""
        return self.params, self.batch_stats, self.opt_state, self.ema_params


def num_parameters(params: Any) -> int:
    """Counts the numbers in a tree of arrays, or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def is_finite(tree: Any, xp: Any = jnp) -> jax.Array:
    """Checks whether no number of a tree is infinite or NaN, bool scalar.

    Args:
      tree: of arrays.
      xp: numpy, for arrays that are the host's own, or its like of JAX.
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


def creation(
    model: Backbone,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    averaged: bool,
    mesh: Mesh,
) -> tuple[Callable[[jax.Array], TrainState], TrainState]:
    """Returns what makes fresh states where `sharding.RULES` say, compiled once.

    Args:
      model: the network.
      optimizer: the optax transformation.
      image_shape: (height, width, channels).
      averaged: whether averaged parameters are kept.
      mesh: the devices.

    Returns:
      From the key of a run to its state, and the shapes, dtypes and shardings of that.
    """

    def init(key: jax.Array) -> TrainState:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init(derive_key(key, "init"), images, train=False)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=key,
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
            ema_params=params if averaged else None,
            running=Metrics.empty(),
            model=model,
            optimizer=optimizer,
        )

    # Only its shapes need the key's; JAX keeps the trace for the program below.
    shapes = sharding.place_state(mesh, jax.jit(init).eval_shape(jax.random.key(0)))
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    program = jax.jit(
        init,
        out_shardings=shardings,
        compiler_options=_QUICK if sharding.platform(mesh) == "cpu" else None,
    )
    return compilation.announce("the initialisation", program), shapes
