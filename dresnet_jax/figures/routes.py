"""Which operations of mixed blocks the images of each class use."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dresnet_jax.data import pipeline
from dresnet_jax.data.sources import Examples
from dresnet_jax.data.streaming import EvalBatches
from dresnet_jax.errors import UserError
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState

# Mean weights of a block's operations, [classes, operations]: {block: array}.
Routes = dict[int, np.ndarray]


def operations(exp: Experiment) -> dict[int, tuple[str, ...]]:
    """Returns the operations of each block that has several: {block: names}.

    Raises:
      UserError: none has.
    """
    mixed = exp.model.spec.mixed
    if not mixed:
        raise UserError(
            f"{exp.config.model.name} has no block with several operations."
        )
    return {i: mixture.operations for i, mixture in mixed.items()}


def by_class(exp: Experiment, state: TrainState, examples: Examples) -> Routes:
    """Returns mean weights over the examples of each class, as evaluated.

    A class without examples has weights that are not a number.

    Raises:
      UserError: no block has several operations.
    """
    blocks, classes = operations(exp), exp.dataset.num_classes

    def sums(state: TrainState, batch: pipeline.Batch) -> tuple[Any, jax.Array]:
        """Sums the weights of each class's images, and counts the images."""
        _, result = exp.model.apply(
            state.eval_variables,
            batch.images,
            train=False,
            mutable=["intermediates"],
        )
        of_class = jax.nn.one_hot(batch.labels, classes) * batch.mask[:, None]
        weights = {}
        for i, names in blocks.items():
            (one,) = result["intermediates"][f"block_{i}"]["mixture"]["weights"]
            one = jnp.broadcast_to(jnp.atleast_2d(one), (len(of_class), len(names)))
            weights[i] = of_class.T @ one
        return weights, of_class.sum(axis=0)

    program, rows = jax.jit(sums), np.arange(exp.recipe.batch_size)
    totals: Routes = {i: np.zeros((classes, len(n))) for i, n in blocks.items()}
    counts = np.zeros(classes)
    for read in exp.inputs.read(EvalBatches(examples, exp.recipe, rows)):
        batch = pipeline.make_batch(exp.recipe, *map(jnp.asarray, read))
        result, of_batch = jax.device_get(program(state, batch))
        counts += of_batch
        for i in blocks:
            totals[i] += result[i]
    with np.errstate(invalid="ignore"):
        return {i: total / counts[:, None] for i, total in totals.items()}


def table(exp: Experiment, routes: Routes) -> str:
    """Lists the mean weights of the operations, a row per block and class."""
    lines, named = [], operations(exp)
    for i, weights in routes.items():
        lines.append(f"block {i:<14d}" + "".join(f"{name:>11s}" for name in named[i]))
        for name, row in zip(exp.dataset.class_names, weights, strict=True):
            lines.append(f"  {name[:18]:18s}" + "".join(f"{w:11.3f}" for w in row))
    return "\n".join(lines)


def draw(exp: Experiment, routes: Routes) -> Figure:
    """Draws a map of the mean weights, classes by operations, for each block."""
    named, classes = operations(exp), exp.dataset.class_names
    columns = min(4, len(routes))
    rows = -(-len(routes) // columns)
    size = 2 + 2.4 * columns, 0.8 + 2.8 * rows
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(routes) :]:
        axis.set_axis_off()
    for axis, (block, result) in zip(axes.flat, routes.items(), strict=False):
        image = axis.imshow(result, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_xticks(range(result.shape[1]), named[block], rotation=90)
        if len(classes) <= 20:
            axis.set_yticks(range(len(classes)), classes)
        axis.set_title(f"block {block}")
    figure.colorbar(image, ax=axes, label="mean weight")
    return figure
