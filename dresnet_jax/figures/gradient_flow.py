"""How much of the gradient arrives at the output of each block."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath
from flax import linen as nn
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dresnet_jax import defaults
from dresnet_jax.data import pipeline
from dresnet_jax.models import zoo
from dresnet_jax.models.backbone import with_form
from dresnet_jax.training import evaluation, experiment, steps
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState

# Norms of the gradient by the output of each block, [states, blocks]: {line: array}.
Flows = Mapping[str, np.ndarray]


def stacks(config: ml_collections.ConfigDict) -> dict[str, Experiment]:
    """Returns the blocks of a config's model, joined in three ways.

    Returns:
      `plain`: by nothing; `residual`: by the model's shortcuts, or identity where it
      has none; `dense`: by these and the config's connections.

    Raises:
      UserError: a value of the config is wrong.
    """
    own = experiment.build(config).model.spec.shortcut
    shortcut = "identity" if own == "none" else own
    name = config.model.name
    if zoo.MODELS[name].connected:
        name = name.removeprefix("d")

    def joined(name: str, shortcut: str) -> Experiment:
        fields = {"model.name": name, "model.shortcut": shortcut}
        return experiment.build(defaults.replace(config, fields))

    return {
        "plain": joined(name, "none"),
        "residual": joined(name, shortcut),
        "dense": joined(f"d{name}", shortcut),
    }


def norms(
    part: Experiment, batch: pipeline.Batch, states: Sequence[TrainState]
) -> np.ndarray:
    """Returns norms of the gradient of a batch's mean loss by the output of each block.

    The network runs as in training: its norms see the batch.

    Returns:
      Euclidean norms over the whole batch, [states, blocks that there are].
    """
    # In a loop over blocks their outputs have no names.
    model = with_form(part.model, "folded")
    names = [f"block_{i}" for i in model.spec.connections.topology.blocks]

    def forward(state: TrainState, batch: pipeline.Batch, **options: Any) -> Any:
        own = state.params, state.batch_stats
        return steps.forward(model, *own, batch.images, state.key, **options)

    def outputs(state: TrainState, batch: pipeline.Batch) -> dict[str, jax.Array]:
        _, result = forward(
            state,
            batch,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name in names,
        )
        calls = result["intermediates"]
        return {name: calls[name]["__call__"][0] for name in names}

    def of_state(state: TrainState, batch: pipeline.Batch) -> jax.Array:
        def loss(added: dict[str, jax.Array]) -> jax.Array:
            def tapped(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
                made = call(*args, **kwargs)
                name = context.module.name
                is_block = name in names and context.method_name == "__call__"
                return made + added[name] if is_block else made

            with nn.intercept_methods(tapped):
                logits, _ = forward(state, batch)
            smoothing = part.config.train.label_smoothing
            return steps.cross_entropy(logits, batch.targets, smoothing).mean()

        nothing = optax.tree.zeros_like(jax.eval_shape(outputs, state, batch))
        gradients = jax.grad(loss)(nothing)
        return jnp.stack([optax.tree.norm(gradients[name]) for name in names])

    program = jax.jit(of_state)
    return np.array([program(state, batch) for state in states])


def panels(
    config: ml_collections.ConfigDict, seeds: int, runs: Sequence[epath.Path]
) -> dict[str, Flows]:
    """Measures stacks of a config before training, and runs at their start and end.

    Each stack is made with seeds from 0 to `seeds` - 1. The result is by title.
    """
    opened = [evaluation.open_run(directory) for directory in runs]
    at_start = stacks(config)
    batch = evaluation.first_batch(at_start["plain"])  # The data of all.
    result: dict[str, Flows] = {
        f"at the start, {seeds} seeds": {
            name: norms(
                part, batch, [part.with_seed(n).create_state() for n in range(seeds)]
            )
            for name, part in at_start.items()
        }
    }
    for directory, (part, restored) in zip(runs, opened, strict=True):
        states = [part.create_state(), restored.state]
        of_run = norms(part, evaluation.first_batch(part), states)
        ends = ("step 0", f"step {restored.step}")
        result[str(directory)] = dict(zip(ends, of_run[:, None], strict=True))
    return result


def table(title: str, flows: Flows) -> str:
    """Returns norms of the gradient, a row per block: the median of each line's states.

    The last row has that of the first block divided by that of the last.
    """
    medians = {name: np.median(norms, axis=0) for name, norms in flows.items()}
    lines = [title, "gradient " + "".join(f"{name:>12}" for name in medians)]
    for i, row in enumerate(zip(*medians.values(), strict=True), 1):
        lines.append(f"block {i:3d}" + "".join(f"{norm:12.3e}" for norm in row))
    ratios = (norms[0] / norms[-1] for norms in medians.values())
    lines.append("1st/last " + "".join(f"{ratio:12.1f}" for ratio in ratios))
    return "\n".join(lines)


def draw(panels: Mapping[str, Flows]) -> Figure:
    """Draws a panel by title: norms over the blocks, with the range of their states."""
    n = len(panels)
    figure, axes = plt.subplots(
        1, n, figsize=(1 + 4 * n, 3.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, flows) in zip(axes[0], panels.items(), strict=True):
        for name, norms in flows.items():
            blocks = np.arange(1, norms.shape[1] + 1)
            axis.plot(blocks, np.median(norms, axis=0), marker=".", label=name)
            axis.fill_between(blocks, norms.min(axis=0), norms.max(axis=0), alpha=0.2)
        axis.set(
            title=title, xlabel="block, the last is next to the loss", yscale="log"
        )
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0, 0].set_ylabel("norm of the loss's gradient\nby the block's output")
    return figure
