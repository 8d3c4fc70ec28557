"""Blocks with more channels between their convolutions, and the same answers.

Channels are divided as by Chen et al. (2016), Net2Net: a copy has its model's incoming
weights, and the outgoing ones are shared among both.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dresnet_jax.data.pipeline import derive_key
from dresnet_jax.errors import UserError
from dresnet_jax.models.blocks import BLOCKS, Hidden
from dresnet_jax.structure import changes
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import leaves

# Norms that compare channels with each other, which copies change.
_COMPARING = ("group", "layer")
_BLOCK = re.compile(r"(?:^|/)block_(\d+)/([^/]+)(?:/|$)")


def hidden_channels(network: Network) -> tuple[int, ...]:
    """Returns the inner channels of each block; 0 where there are none."""
    spec = network.parts.model.spec
    hidden = BLOCKS[spec.block].hidden
    found = []
    for i in range(1, len(spec.stages) + 1):
        own = network.state.params.get(f"block_{i}", {})
        kernels = [
            leaf
            for name, leaf in leaves.by_name(own).items()
            if hidden and name.startswith(hidden.makes[0]) and name.endswith("kernel")
        ]
        found.append(kernels[0].shape[-1] if kernels else 0)
    return tuple(found)


def why_not(network: Network, block: int) -> str:
    """Returns why a block's channels cannot be divided; empty if they can."""
    spec = network.parts.model.spec
    if not 1 <= block <= len(spec.stages) or f"block_{block}" not in (
        network.state.params
    ):
        return f"there is no block {block}"
    if why := spec.fixed_hidden(block):
        return f"it has {why}"
    hidden = BLOCKS[spec.block].hidden
    assert hidden is not None, "that is why the number is fixed"
    own = leaves.by_name(network.state.params[f"block_{block}"])
    is_normed = any(
        name.partition("/")[0] in hidden.makes and name.endswith("/scale")
        for name in own
    )
    if is_normed and spec.layers.norm in _COMPARING:
        return f"norm '{spec.layers.norm}' compares its channels"
    return ""


def widened(
    network: Network, copies: Mapping[int, Sequence[int]], noise: float = 0.0
) -> Network:
    """Returns the network with copies of some channels inside its blocks.

    It answers as it did, except for noise, and trains on. Where a channel was divided
    by n, so are the running means of gradients of the weights that come in, and those
    of squared gradients by n^2, as the gradients themselves are from then on.

    Args:
      network: what grows; it stays as it is.
      copies: by block, from 1, the channels, from 0, that are copied, once for each
        time that they stand there.
      noise: standard deviation of what is added to the incoming kernels of copies,
        relative to each weight. Without it, copies differ by nothing but what dropout
        and rounding make of them.

    Raises:
      UserError: nothing would be copied, there is no such channel, or a block's
        channels cannot be divided without an effect.
    """
    before = hidden_channels(network)
    if not any(map(len, copies.values())):
        raise UserError("No channel is named that could be divided.")
    for i, units in copies.items():
        if why := why_not(network, i):
            raise UserError(f"The channels of block {i} cannot be divided: {why}.")
        if strange := [unit for unit in units if not 0 <= unit < before[i - 1]]:
            raise UserError(
                f"Block {i} has channels 0 to {before[i - 1] - 1}, and no {strange[0]}."
            )
    hidden = BLOCKS[network.parts.model.spec.block].hidden
    assert hidden is not None, "why_not"
    divisions = {
        i: _Division(hidden, (*range(before[i - 1]), *units))
        for i, units in copies.items()
    }

    def carried(name: str, old: Any, fresh: jax.Array) -> jax.Array:
        del fresh
        found, leaf = _BLOCK.search(name), old[name]
        # Connections have blocks too.
        if not found or changes.CONNECTIONS in name:
            return leaf
        division = divisions.get(int(found[1]))
        return division.of(name, leaf, noise, old["key"]) if division else leaf

    after = list(before)
    for i, units in copies.items():
        after[i - 1] += len(units)
    return changes.made(network, {"model.hidden": tuple(after)}, carried)


@dataclasses.dataclass(frozen=True)
class _Division:
    """How the leaves of a block go from its channels to more.

    Attributes:
      hidden: where the channels are.
      models: the old channel of each new one.
    """

    hidden: Hidden
    models: tuple[int, ...]

    def of(self, name: str, leaf: jax.Array, noise: float, key: jax.Array) -> jax.Array:
        """Returns a leaf of parameters, averages or the optimiser's memory, divided."""
        found = _BLOCK.search(name)
        assert found is not None, "it is a block's"
        module, models = found[2], np.asarray(self.models)
        shares = 1 / np.bincount(models)[models].astype(leaf.dtype)
        is_memory = name.startswith("opt_state")
        if module in self.hidden.reads and name.endswith("kernel"):
            leaf = jnp.take(leaf, models, axis=-2)
            leaf = leaf if is_memory else leaf * _along(shares, leaf, -2)
        if module in self.hidden.makes:
            leaf = jnp.take(leaf, models, axis=-1)
            if is_memory:
                power = 2 if changes.SQUARES in name else 1
                leaf = leaf * _along(shares**power, leaf, -1)
            elif noise and name.endswith("kernel"):
                leaf = self._noisy(found[0], leaf, noise, key)
        return leaf

    def _noisy(
        self, where: str, leaf: jax.Array, noise: float, key: jax.Array
    ) -> jax.Array:
        """A kernel of which the copies are changed; averages as the parameters."""
        number = sum(map(ord, where.strip("/")))
        key = jax.random.fold_in(derive_key(key, "init"), number)
        random = jax.random.normal(key, leaf.shape)
        is_copy = np.arange(len(self.models)) > max(self.models)
        factors = 1 + noise * random * _along(is_copy, leaf, -1)
        return leaf * factors.astype(leaf.dtype)


def _along(factors: np.ndarray, leaf: jax.Array, axis: int) -> np.ndarray:
    """Factors of one axis of a leaf, with as many axes as it has."""
    shape = [1] * leaf.ndim
    shape[axis] = -1
    return factors.reshape(shape)
