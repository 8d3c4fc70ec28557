"""The mixed block: several operations, of which training finds the weights."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.models.layers import PENALTIES
from dresnet_jax.models.mixture import Mixture, imbalance, straight_through
from dresnet_jax.models.operations import SKIPS, Branch
from dresnet_jax.models.residual import Block, ResidualScale

# Length of a router's queries and keys.
_QUERY = 16


class MixedBlock(Block):
    """Operations F_o of one input, weighted, and a shortcut (Liu et al. 2019, DARTS).

    y = activate(shortcut(x) + sum_o p_o F_o(x)). With a single operation there are no
    weights: this is the block that is left of a mixed one.
    """

    @staticmethod
    def architecture(parameters: Any) -> Any:
        """Marks the operations' weights, or a router's keys, among its parameters."""
        marks = jax.tree.map(lambda _: False, parameters)
        if "mixture" in marks:
            marks["mixture"]["gate_weights"] = True
        return marks

    @property
    def residual(self) -> ResidualScale:
        """A scale that starts at 0 stands for the last norm, which the sum has not."""
        result = super().residual
        if not self.spec.zero_last:
            return result
        return ResidualScale("channel" if result.each == "none" else result.each, 0.0)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, mixture = self.spec, self.spec.mixture
        shape = spec.features, spec.stride, spec.dilation
        branches = [
            Branch(name, self.layers, *shape, name=name) for name in mixture.operations
        ]
        made = [branch(x, train=train) for branch in branches]
        y = made[0]
        if mixture.is_mixed:
            weights = Weights(mixture, name="mixture")(x, train=train)
            if train and mixture.price:
                cost = jnp.mean(weights @ _shares(branches))
                self.sow(PENALTIES, "price", mixture.price * cost)
            # Of each image, or of all.
            weights = weights.astype(y.dtype).reshape(-1, 1, 1, 1, len(made))
            y = sum(
                (weights[..., n] * one for n, one in enumerate(made)), jnp.zeros_like(y)
            )
        return self.layers.activate(self.join(x, y, train=train))


def _shares(branches: Sequence[Branch]) -> jax.Array:
    """Parameters of each branch, divided by those of the largest: [operations]."""
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(branch.variables.get("params", {})))
        for branch in branches
    ]
    return jnp.asarray(sizes, jnp.float32) / max(1, *sizes)


class Weights(nn.Module):
    """The weights p_o of a block's operations, which start equal.

    The steps of training that the temperature depends on are counted with the
    averages of the norms: a run that resumes has them. In evaluation the temperature is
    the one that training has come to, and there is no noise.
    """

    mixture: Mixture

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Weights of the input [batch, height, width, channels], float32.

        Returns:
          [operations], or [batch, operations] where images have weights of their own.
          With `train` and `skip_drop`, those of skips are 0 for some images and larger
          for the others.
        """
        mixture, count = self.mixture, len(self.mixture.operations)
        steps = self.variable("batch_stats", "steps", lambda: jnp.zeros((), jnp.int32))
        temperature = mixture.temperature_after(steps.value)
        if mixture.weights == "routed":
            pooled = x.astype(jnp.float32).mean(axis=(1, 2))
            query = nn.Dense(_QUERY, name="query")(pooled)
            keys = self.param("gate_weights", nn.initializers.zeros, (count, _QUERY))
            logits = query @ keys.T / jnp.sqrt(_QUERY)
        else:
            logits = self.param("gate_weights", nn.initializers.zeros, (count,))
        is_gumbel = mixture.weights == "gumbel"
        if is_gumbel and train:
            shape = (x.shape[0], count)
            noise = jax.random.gumbel(self.make_rng("dropout"), shape)
            logits = logits[None] + noise
        weights = nn.softmax(logits / temperature)
        if is_gumbel:
            weights = straight_through(weights)
        self.sow("intermediates", "weights", weights)
        if train:
            if mixture.balance and mixture.weights == "routed":
                penalty = mixture.balance * imbalance(weights)
                self.sow(PENALTIES, "imbalance", penalty)
            if mixture.skip_drop:
                rate = mixture.skip_drop * (1 - mixture.progress(steps.value))
                weights = self._without_skips(weights, rate, x.shape[0])
            steps.value += 1
        return weights

    def _without_skips(
        self, weights: jax.Array, rate: jax.Array, batch: int
    ) -> jax.Array:
        """Weights [batch, operations], of which skips have lost some."""
        is_skip = [name in SKIPS for name in self.mixture.operations]
        shape = (batch, len(is_skip))
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
        factor = jnp.where(jnp.asarray(is_skip)[None], kept / (1 - rate), 1.0)
        return weights.reshape(-1, len(is_skip)) * factor
