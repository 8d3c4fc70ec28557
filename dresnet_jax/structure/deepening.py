"""Networks with more blocks than they had, and the same answers."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from dresnet_jax.errors import UserError
from dresnet_jax.models.backbone_spec import BackboneSpec
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.structure import changes
from dresnet_jax.structure.pruning import Network
from dresnet_jax.structure.widening import hidden_channels

# Activations that leave what they gave as it is.
_IDEMPOTENT = ("relu", "relu6")
_NUMBERED = re.compile(r"(?<![a-z])(block|exit|confidence|from)_(\d+)")


def why_not(spec: BackboneSpec, after: int) -> str:
    """Returns why no block can be put after one; empty if it can."""
    kind, topology = BLOCKS[spec.block], spec.connections.topology
    if not 1 <= after <= len(spec.stages):
        return f"there is no block {after}"
    if not kind.last:
        return f"a block '{spec.block}' has no factor that silences it"
    if topology.is_free:
        return "a free graph has no path from block to block to put it into"
    if topology.edges and spec.connections.weights == "by_distance":
        return "the connections' distances, which share weights, would be others"
    if spec.drop_path:
        return "blocks would be left out at other rates, as drop_path is not 0"
    if spec.conditional is not None:
        return "gates of conditional paths draw other numbers after it"
    shortcut = _with_block(spec, after).blocks[after].shortcut
    if shortcut != "identity":
        return f"its shortcut is '{shortcut}', and not the identity"
    if kind.activates and spec.layers.activation not in _IDEMPOTENT:
        return f"activation '{spec.layers.activation}' changes what it is given"
    return ""


def deepened(network: Network, after: int, hidden: int = 0) -> Network:
    """Returns the network with a block more, which adds nothing yet, and trains on.

    The new block begins as such blocks do, except the scale after its last
    convolution, or the kernel where there is none, which is 0. It has no learned
    connections; those of the others stay, whatever is between.

    Args:
      network: what grows; it stays as it is.
      after: the block, from 1, after which it comes, in the same stage.
      hidden: channels between its convolutions; 0 for its own number.

    Raises:
      UserError: there is no such block, or a new one would have an effect.
    """
    spec = network.experiment.model.spec
    if why := why_not(spec, after):
        raise UserError(f"No block can be put after block {after}: {why}.")
    new, edges = after + 1, spec.connections.topology.edges
    edges = tuple((_moved(i, new), _moved(k, new)) for i, k in edges)
    fields: dict[str, Any] = {
        "model.blocks_per_stage": _with_block(spec, after).blocks_per_stage,
        "model.connections.topology": edges or "none",
        "model.exits.after": tuple(_moved(i, new) for i in spec.exits.after),
    }
    if spec.hidden or hidden:
        before = hidden_channels(network) if spec.hidden else (0,) * len(spec.stages)
        fields["model.hidden"] = (*before[:after], hidden, *before[after:])

    def old_name(result: re.Match[str]) -> str:
        block = int(result[2])
        # The leaves of the new block had none.
        return "" if block == new else f"{result[1]}_{block - (block > new)}"

    def converted(name: str, old: Any, fresh: jax.Array) -> jax.Array:
        return old.get(_NUMBERED.sub(old_name, name), fresh)

    def silenced(params: Any, key: jax.Array) -> Any:
        del key
        return {**params, f"block_{new}": _silent(spec, params[f"block_{new}"])}

    return changes.made(network, fields, converted, silenced)


def _with_block(spec: BackboneSpec, after: int) -> BackboneSpec:
    """The spec with a block more, except what is said of each block."""
    own = spec.stages[after - 1]
    blocks = tuple(n + (i == own) for i, n in enumerate(spec.blocks_per_stage))
    return dataclasses.replace(spec, blocks_per_stage=blocks, hidden=(), mixtures=())


def _silent(spec: BackboneSpec, params: Any) -> Any:
    """Parameters of a block that adds nothing to its input."""
    if spec.zero_last:
        return params
    if "scale" in params:
        return {**params, "scale": jnp.zeros_like(params["scale"])}
    last = BLOCKS[spec.block].last
    own = params[last]
    if "norm" in own:
        norm = {**own["norm"], "scale": jnp.zeros_like(own["norm"]["scale"])}
        return {**params, last: {**own, "norm": norm}}
    return {**params, last: jax.tree.map(jnp.zeros_like, own)}


def _moved(block: int, new: int) -> int:
    """The number of a block, of those with the new one."""
    return block + (block >= new)
