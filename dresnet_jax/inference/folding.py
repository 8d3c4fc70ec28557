"""A trained network for inference: norms in the kernels, gates as numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from dresnet_jax.connections.module import Connections
from dresnet_jax.connections.spec import ConnectionSpec
from dresnet_jax.models.backbone import Backbone
from dresnet_jax.models.layers import BATCH_NORM_EPSILON

Tree = Mapping[str, Any]


def folded(
    model: Backbone, params: Tree, batch_stats: Tree
) -> tuple[Backbone, dict[str, Tree]]:
    """Returns the same function in fewer operations, which cannot be trained.

    Batch norms after a convolution become its kernel and bias, and F(w) of every
    connection a number. Norms that stand elsewhere, as before an activation, stay.

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
    """Parameters and averages, with the norm of each `layers.ConvNorm` in its conv."""
    values: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    stats: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(batch_stats)
    for path in list(values):
        conv, norm = path[:-1], (*path[:-2], "norm")
        if path[-2:] == ("conv", "kernel") and (*norm, "scale") in values:
            mean, variance = stats.pop((*norm, "mean")), stats.pop((*norm, "var"))
            scale, shift = values.pop((*norm, "scale")), values.pop((*norm, "bias"))
            factor = scale / jnp.sqrt(variance + BATCH_NORM_EPSILON)
            bias = values.get((*conv, "bias"), jnp.zeros_like(factor))
            values[path] = values[path] * factor[None, None, None]
            values[*conv, "bias"] = shift + factor * (bias - mean)
    return traverse_util.unflatten_dict(values), traverse_util.unflatten_dict(stats)


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
