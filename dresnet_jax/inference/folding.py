"""A trained network for inference: norms in the kernels, gates as numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from dresnet_jax.connections.module import Connections
from dresnet_jax.connections.spec import ConnectionSpec
from dresnet_jax.models.backbone import Backbone
from dresnet_jax.models.layers import BATCH_NORM_EPSILON

Tree = Mapping[str, Any]


def folded(
    model: Backbone, params: Tree, batch_stats: Tree
) -> tuple[Backbone, dict[str, Tree]]:
    """Returns the same function in fewer operations; it cannot be trained.

    Batch norms after a convolution become its kernel and bias, and F(w) of every
    connection a number. Norms that stand elsewhere, as before an activation, stay.

    Args:
      model: the network.
      params: its parameters.
      batch_stats: the averages of its norms.

    Returns:
      The network, and its variables.
    """
    spec, connections = model.spec, model.spec.connections
    if spec.layers.norm == "batch":
        layers = dataclasses.replace(spec.layers, folded=True)
        spec = dataclasses.replace(spec, layers=layers)
        params, batch_stats = _without_norms(params, batch_stats)
    if connections.topology.edges:
        connections, own = _opened(connections, spec.channels, params["connections"])
        spec = dataclasses.replace(spec, connections=connections)
        params = {**params, "connections": own}
    return model.clone(spec=spec), {"params": params, "batch_stats": batch_stats}


def _without_norms(params: Tree, batch_stats: Tree) -> tuple[Tree, Tree]:
    """What `layers.ConvNorm` owns, with its norm in its convolution."""
    if not isinstance(params, Mapping):
        return params, {}
    if params.keys() >= {"conv", "norm"} and "kernel" in params["conv"]:
        conv, norm, result = params["conv"], params["norm"], batch_stats["norm"]
        factor = norm["scale"] / jnp.sqrt(result["var"] + BATCH_NORM_EPSILON)
        bias = conv.get("bias", jnp.zeros_like(factor))
        kernel = conv["kernel"] * factor[None, None, None]
        bias = norm["bias"] + factor * (bias - result["mean"])
        return {"conv": {"kernel": kernel, "bias": bias}}, {}
    left = {
        name: _without_norms(value, batch_stats.get(name, {}))
        for name, value in params.items()
    }
    # The averages of a norm itself, which no parameter is called like.
    stats = {name: value for name, value in batch_stats.items() if name not in params}
    stats |= {name: result for name, (_, result) in left.items() if result}
    return {name: value for name, (value, _) in left.items()}, stats


def _opened(
    spec: ConnectionSpec, channels: tuple[int, ...], parameters: Tree
) -> tuple[ConnectionSpec, dict[str, Any]]:
    """The connections with F(w) instead of w."""
    module = Connections(spec, channels)
    gate_values: Any = module.apply(
        {"params": parameters}, method=Connections.gate_values
    )
    each = "per_channel" if spec.weights == "per_channel" else "per_edge"
    left = dataclasses.replace(spec, gate="identity", weights=each)
    own = {
        f"block_{i}": {
            name: value
            for name, value in parameters.get(f"block_{i}", {}).items()
            if name.startswith("from_")
        }
        | {"gate_weights": values}
        for i, values in gate_values.items()
    }
    stages = {k: v for k, v in parameters.items() if k.startswith(("stage_", "stem_"))}
    return left, own | stages
