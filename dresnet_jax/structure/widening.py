"""Blocks with more channels between their convolutions, and the same answers.

Channels are divided as by Chen et al. (2016), Net2Net: a copy has its model's incoming
weights, and the outgoing ones are shared among both.
"""

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
_MEMORY = "opt_state"
_BLOCK = re.compile(r"(?:^|/)block_(\d+)/([^/]+)(?:/|$)")


def hidden_channels(network: Network) -> tuple[int, ...]:
    """Returns the inner channels of each block; 0 where there are none."""
    spec, params = network.experiment.model.spec, network.state.params
    first = next(iter(BLOCKS[spec.block].hidden.makes), "")
    blocks = (params.get(f"block_{i}", {}) for i in range(1, len(spec.stages) + 1))
    return tuple(kernel(own[first]).shape[-1] if first in own else 0 for own in blocks)


def kernel(module: Mapping[str, Any]) -> jax.Array:
    """Returns the kernel of a convolution's parameters, which may have a norm."""
    return module.get("conv", module)["kernel"]


def why_not(network: Network, block: int) -> str:
    """Returns why a block's channels cannot be divided; empty if they can."""
    spec = network.experiment.model.spec
    if f"block_{block}" not in network.state.params:
        return f"there is no block {block}"
    if why := spec.fixed_hidden(block):
        return f"it has {why}"
    own, makes = network.state.params[f"block_{block}"], BLOCKS[spec.block].hidden.makes
    names = leaves.by_name([own[name] for name in makes if name in own])
    is_normed = any(name.endswith("/scale") for name in names)
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
    hidden = BLOCKS[network.experiment.model.spec.block].hidden
    models = {i: np.array([*range(before[i - 1]), *copies[i]]) for i in copies}

    def converted(name: str, old: Any, fresh: jax.Array) -> jax.Array:
        del fresh
        block, module = place(name)
        if block not in models:
            return old[name]
        result = _divided(name, module, old[name], hidden, models[block])
        is_kernel = module in hidden.makes and name.endswith("kernel")
        if noise and is_kernel and not name.startswith(_MEMORY):
            # Averages have the noise of the parameters.
            random = normal(old["key"], f"block_{block}/{module}", result.shape)
            is_copy = np.arange(result.shape[-1]) >= before[block - 1]
            factors = 1 + noise * random * _along(is_copy, result, -1)
            return result * factors.astype(result.dtype)
        return result

    after = tuple(n + len(copies.get(i, ())) for i, n in enumerate(before, 1))
    return changes.made(network, {"model.hidden": after}, converted)


def place(name: str) -> tuple[int, str]:
    """Returns the block of a leaf, and the module in it; 0 where it is of no block."""
    # Connections have blocks too.
    result = None if changes.CONNECTIONS in name else _BLOCK.search(name)
    return (int(result[1]), result[2]) if result else (0, "")


def normal(key: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Draws normal numbers for what has a name, by the key of a run."""
    own = jax.random.fold_in(derive_key(key, "init"), sum(map(ord, name)))
    return jax.random.normal(own, shape)


def _divided(
    name: str, module: str, leaf: jax.Array, hidden: Hidden, models: np.ndarray
) -> jax.Array:
    """A leaf of a block with more channels; `models` has the old one of each."""
    shares = 1 / np.bincount(models)[models].astype(leaf.dtype)
    is_memory = name.startswith(_MEMORY)
    if module in hidden.reads and name.endswith("kernel"):
        leaf = jnp.take(leaf, models, axis=-2)
        leaf = leaf if is_memory else leaf * _along(shares, leaf, -2)
    if module in hidden.makes:
        leaf = jnp.take(leaf, models, axis=-1)
        power = 2 if changes.SQUARES in name else 1
        leaf = leaf * _along(shares**power, leaf, -1) if is_memory else leaf
    return leaf


def _along(factors: np.ndarray, leaf: jax.Array, axis: int) -> np.ndarray:
    """Factors of one axis of a leaf, with as many axes as it has."""
    shape = [1] * leaf.ndim
    shape[axis] = -1
    return factors.reshape(shape)
