"""The programs of the connection benchmark: compiled, and counted by the compiler."""

import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dresnet_jax.costs import cost, hlo
from dresnet_jax.data import pipeline
from dresnet_jax.models import counting
from dresnet_jax.training import (
    compilation,
    compilation_cache,
    experiment,
    sharding,
    steps,
)


@dataclasses.dataclass
class Program:
    """A compiled program.

    Attributes:
      compiled: takes `given`; a step returns the next state first, and consumes its
        own.
      given: its arguments.
      flops: of one run on each device.
      cost: of all turns of its loops; None where that is not known.
      temp_bytes: temporary memory.
      saved_bytes: what is saved of a batch for the backward pass.
      traffic: bytes by part of the network, of a step.
      trace_seconds: of the program.
      compile_seconds: of the program.
    """

    compiled: jax.stages.Compiled
    given: tuple
    is_step: bool
    flops: float
    cost: cost.Cost | None
    temp_bytes: int
    saved_bytes: int
    traffic: dict[str, float] | None
    trace_seconds: float
    compile_seconds: float

    def run(self) -> object:
        """Runs it once."""
        results = self.compiled(*self.given)
        if self.is_step:
            self.given = (results[0], *self.given[1:])
        return results[1]


def build(
    part: experiment.Experiment,
    *,
    is_stage: bool,
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Compiles a network's program, and counts what it costs.

    Args:
      part: the network; its batch is that of one chip where devices are given.
      is_stage: whether it is the gradient by the parameters, those of blocks that are
        scanned stacked outside of it; else it is a training step.
      devices: of a target that is not here.
    """
    saved_bytes = _saved_bytes(part)
    if devices is not None:
        batch_size = part.recipe.batch_size * len(devices)
        mesh = sharding.make_mesh(part.config.sharding, batch_size, devices)
        part = dataclasses.replace(part, mesh=mesh)
    function = _function(part, is_stage=is_stage)
    given = _arguments(part, is_stage=is_stage, abstract=devices is not None)
    start = time.perf_counter()
    traced = jax.jit(function, donate_argnums=() if is_stage else 0).trace(*given)
    lowered = traced.lower()
    ready = time.perf_counter()
    form = part.model.spec.connections.form
    # Timed, so not read from the cache.
    with compilation.announced(f"form {form}"), compilation_cache.bypassed():
        compiled = lowered.compile()
    done = time.perf_counter()
    flops = 2.0 * counting.in_jaxpr(traced.jaxpr) / part.mesh.size
    once = cost.of(compiled, flops)
    return Program(
        compiled=compiled,
        given=given,
        is_step=not is_stage,
        flops=flops,
        cost=_of_all_turns(part, is_stage, given, once),
        temp_bytes=once.temp_bytes,
        saved_bytes=saved_bytes,
        traffic=None if is_stage else hlo.traffic(compiled.as_text() or ""),
        trace_seconds=ready - start,
        compile_seconds=done - ready,
    )


def _function(part: experiment.Experiment, *, is_stage: bool) -> Callable[..., tuple]:
    """The function that is compiled."""
    if not is_stage:
        return part.step
    pack, unpack = _packing(part)

    def gradient(params: Any, batch_stats: Any, batch: pipeline.Batch) -> tuple:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            value, updates = _loss(part, unpack(params), unpack(batch_stats), batch)
            return value, pack(updates)

        return jax.grad(loss, has_aux=True)(params)

    return gradient


def _arguments(
    part: experiment.Experiment, *, is_stage: bool, abstract: bool
) -> tuple[Any, ...]:
    """The function's arguments, or their shapes."""
    state = part.create_state(abstract=abstract)
    if abstract:
        # As many images on each device as the recipe says.
        shapes = _batch_shapes(part, part.recipe.batch_size * part.mesh.size)
        batch = sharding.abstract(shapes, sharding.split_batch(part.mesh))
    else:
        batch = _batch(part)
    if not is_stage:
        return state, batch
    pack, _ = _packing(part)
    return pack(state.params), pack(state.batch_stats), batch


def _loss(
    part: experiment.Experiment, params: Any, batch_stats: Any, batch: pipeline.Batch
) -> tuple[jax.Array, Any]:
    """The loss of a batch, and the new batch statistics."""
    key = jax.random.key(0)
    logits, updates = steps.forward(part.model, params, batch_stats, batch.images, key)
    losses = steps.cross_entropy(logits, batch.targets, label_smoothing=0.0)
    return losses.mean() + steps.penalties(updates), updates.get("batch_stats", {})


def loops(part: experiment.Experiment) -> list[int]:
    """Returns the number of blocks in each loop over blocks."""
    spec = part.model.spec
    if spec.connections.form != "stacked":
        return []
    unroll = spec.connections.unroll
    return [len(blocks) for blocks in spec.alike if len(blocks) > unroll]


def _packing(
    part: experiment.Experiment,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Stacks the parameters of a stage's blocks, if they are scanned, and back."""
    if part.model.spec.connections.form != "stacked":
        return (lambda tree: tree), (lambda tree: tree)
    blocks = [f"block_{i}" for i in part.model.spec.alike[0]]

    def stack(*leaves: Any) -> Any:
        x = leaves[0]
        if isinstance(x, jax.ShapeDtypeStruct):
            return x.update(shape=(len(leaves), *x.shape))
        return jnp.stack(leaves)

    def pack(tree: Any) -> Any:
        rest = {name: leaf for name, leaf in tree.items() if name not in blocks}
        stacked = jax.tree.map(stack, *(tree[name] for name in blocks))
        return rest | {"stacked": stacked}

    def unpack(tree: Any) -> Any:
        one = {
            name: jax.tree.map(operator.itemgetter(n), tree["stacked"])
            for n, name in enumerate(blocks)
        }
        return {name: leaf for name, leaf in tree.items() if name != "stacked"} | one

    return pack, unpack


def _of_all_turns(
    part: experiment.Experiment, is_stage: bool, given: tuple, once: cost.Cost
) -> cost.Cost | None:
    """The cost of a program whose loops the compiler counted as one turn.

    With two blocks in a turn it counts them twice: the difference is that of a turn.
    """
    turns = set(loops(part))
    if not turns:
        return once
    spec = part.model.spec
    if len(turns) > 1 or spec.connections.unroll > 1:
        return None
    (turns_of_each,) = turns
    unrolled = dataclasses.replace(spec.connections, unroll=2)
    model = part.model.copy(spec=dataclasses.replace(spec, connections=unrolled))
    function = _function(dataclasses.replace(part, model=model), is_stage=is_stage)
    twice = cost.of(jax.jit(function).lower(*given).compile(), once.flops)
    # What is left of an odd number of turns stands after the loop.
    factor = (turns_of_each - 1) / (1 + turns_of_each % 2)
    return dataclasses.replace(
        once,
        bytes_accessed=once.bytes_accessed
        + factor * (twice.bytes_accessed - once.bytes_accessed),
    )


def _saved_bytes(part: experiment.Experiment) -> int:
    """What differentiation saves of one batch for the backward pass, bytes.

    What does not depend on the batch, such as the parameters, cancels out between
    batches of two sizes.
    """
    state = part.create_state(abstract=True)

    def residuals(batch_size: int) -> int:
        pullback = jax.eval_shape(
            lambda params, stats, batch: jax.vjp(
                lambda params: _loss(part, params, stats, batch), params, has_aux=True
            )[1],
            state.params,
            state.batch_stats,
            _batch_shapes(part, batch_size),
        )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback))

    size = part.recipe.batch_size
    return residuals(2 * size) - residuals(size)


def _batch(part: experiment.Experiment) -> pipeline.Batch:
    size, side = part.recipe.batch_size, part.dataset.image_size
    random = np.random.RandomState(0)
    shape = (size, side, side, part.dataset.channels)
    return pipeline.make_batch(
        part.recipe,
        jnp.asarray(random.randint(256, size=shape), jnp.uint8),
        jnp.asarray(random.randint(part.dataset.num_classes, size=size), jnp.int32),
    )


def _batch_shapes(part: experiment.Experiment, size: int) -> pipeline.Batch:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype),
        jax.eval_shape(functools.partial(_batch, part)),
    )
