"""How much the channels inside of blocks would gain by being divided."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dresnet_jax.data.pipeline import Batch
from dresnet_jax.models.backbone import with_form
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.structure import widening
from dresnet_jax.structure.changes import GRADIENT
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import leaves, steps
from dresnet_jax.training.state import TrainState

# (network, a batch, its blocks whose channels can be divided) -> by block, a score of
# each channel: the higher, the sooner it is divided.
Scores = dict[int, np.ndarray]
Rule = Callable[[Network, Batch, list[int]], Scores]

_BINS = 20
# Of the incoming weights of the two halves of a channel, relative to each.
_SPLIT = 0.1


def entropy(network: Network, batch: Batch, blocks: list[int]) -> Scores:
    """Computes H / ln(bins) of each channel's values, in 20 bins over its range.

    From 0, where it is constant, to 1, where all values are equally frequent. In nats
    alone nearly every channel would be above any threshold.
    """
    model, state = with_form(network.experiment.model, "folded"), network.state
    seen = BLOCKS[model.spec.block].hidden.makes[-1]

    def given(state: Any, images: jax.Array) -> dict[int, jax.Array]:
        _, result = model.apply(
            state.variables,
            images,
            train=False,
            capture_intermediates=lambda module, _: module.path[1:] == (seen,),
            mutable=["intermediates"],
        )
        outputs = {i: result["intermediates"][f"block_{i}"][seen] for i in blocks}
        return {i: _entropy(own["__call__"][0]) for i, own in outputs.items()}

    return network.on_host(given, state, batch.images)


def gradient(network: Network, batch: Batch, blocks: list[int]) -> Scores:
    """Returns the norm of the loss's gradient for each channel's incoming weights."""
    model, state = network.experiment.model, network.state
    first = BLOCKS[model.spec.block].hidden.makes[0]

    def norms(state: Any, batch: Batch) -> dict[int, jax.Array]:
        result = jax.grad(steps.mean_loss, argnums=1)(model, state.params, state, batch)
        squares = {i: widening.kernel(result[f"block_{i}"][first]) ** 2 for i in blocks}
        return {i: jnp.sqrt(x.sum(axis=(0, 1, 2))) for i, x in squares.items()}

    return network.on_host(norms, state, batch)


def curvature(network: Network, batch: Batch, blocks: list[int]) -> Scores:
    """Estimates to first order how much dividing each channel reduces the loss.

    One has weights a little above its own and one as much below, in a random direction
    (Liu, Wu and Wang 2019, splitting steepest descent): the channel's mean changes by
    what its activation is curved there.
    """
    channels = widening.hidden_channels(network)
    thrice = {i: (*range(channels[i - 1]),) * 2 for i in blocks}
    larger = widening.widened(network, thrice)
    model, state = larger.experiment.model, larger.state
    hidden = BLOCKS[model.spec.block].hidden

    def params(split: dict[int, jax.Array], state: TrainState) -> Any:
        def one(name: str, leaf: jax.Array) -> jax.Array:
            block, module = widening.place(name)
            if block not in split or not name.endswith("kernel"):
                return leaf
            share = split[block]
            if module in hidden.reads:
                # All of what goes out is the channel's own, and none its halves'.
                factors = 3 * jnp.concatenate([1 - share, share / 2, share / 2])
                leaf = leaf * factors[None, None, :, None]
            if module in hidden.makes:
                shape = (*leaf.shape[:-1], leaf.shape[-1] // 3)
                noise = _SPLIT * widening.normal(state.key, name, shape)
                both = jnp.concatenate([jnp.zeros_like(noise), noise, -noise], axis=-1)
                leaf = leaf * (1 + both)
            return leaf

        return leaves.map_by_name(one, state.params)

    def falls(state: TrainState, batch: Batch) -> dict[int, jax.Array]:
        start = {i: jnp.zeros(channels[i - 1]) for i in blocks}
        result = jax.grad(
            lambda split: steps.mean_loss(model, params(split, state), state, batch)
        )(start)
        return jax.tree.map(jnp.negative, result)

    return larger.on_host(falls, state, batch)


def at_random(network: Network, batch: Batch, blocks: list[int]) -> Scores:
    """Draws scores by the run's seed and step."""
    del batch
    channels, numbers = widening.hidden_channels(network), random(network)
    return {i: numbers.random(channels[i - 1]) for i in blocks}


def random(network: Network) -> np.random.Generator:
    """Seeds by the run's seed and step, so that a run that resumes draws the same."""
    return np.random.default_rng(
        (network.experiment.config.seed, int(network.state.step))
    )


RULES: dict[str, Rule] = {
    "entropy": entropy,
    "gradient": gradient,
    "curvature": curvature,
    "random": at_random,
}
# Of a batch through the network, that each rule takes.
PASSES = {"entropy": 1, "gradient": GRADIENT, "curvature": GRADIENT, "random": 0}


def chosen(scores: Scores, quantile: float, bucket: int) -> dict[int, list[int]]:
    """Chooses the channels above a quantile of all scores, by block.

    The number of each block is rounded to a multiple of `bucket`, so that programs are
    of few shapes; where all would be 0, the block that has most gets one bucket. A
    block's highest scores are taken first, some channels twice where it has fewer.
    """
    least = np.quantile(np.concatenate(list(scores.values())), quantile)
    counts = {i: int((of_block > least).sum()) for i, of_block in scores.items()}
    buckets = {i: round(count / bucket) for i, count in counts.items()}
    if not any(buckets.values()):
        buckets[max(counts, key=lambda i: counts[i])] = 1
    return {
        i: np.resize(np.argsort(-scores[i], kind="stable"), n * bucket).tolist()
        for i, n in buckets.items()
        if n
    }


def _entropy(x: jax.Array) -> jax.Array:
    """Of [batch, height, width, channels], [channels]."""
    values = x.reshape(-1, x.shape[-1]).T
    low, high = values.min(axis=1), values.max(axis=1)
    spread = jnp.where(high > low, high - low, 1)
    places = (values - low[:, None]) / spread[:, None] * _BINS
    places = jnp.clip(places.astype(jnp.int32), 0, _BINS - 1)
    counts = jax.vmap(lambda row: jnp.bincount(row, length=_BINS))(places)
    shares = counts / values.shape[1]
    logarithms = jnp.log(jnp.where(shares > 0, shares, 1))
    return -(shares * logarithms).sum(axis=1) / np.log(_BINS)
