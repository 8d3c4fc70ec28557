"""Other arrangements of the form `folded`, which it was chosen among.

All compute the same sum of a base and of sources with projections per edge, but for
rounding. `benchmark connections --model=dresnet18 --arrangements --target=v5e:2x2`
measures them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from dresnet_jax.connections.module import Connections
from dresnet_jax.connections.weighted_sum import (
    Arrays,
    BlockOutputs,
    WeightedSum,
    average_pool,
)
from dresnet_jax.errors import UserError

Size = tuple[int, int]


def _per_source(outputs: BlockOutputs, blocks: tuple[int, ...], size: Size) -> Arrays:
    """Every source pooled by itself, each resolution from the one before."""
    return [outputs.pooled((k,), size) for k in blocks]


def _halved_by(halve: Callable[[jax.Array], jax.Array]) -> Callable[..., Arrays]:
    """Every source pooled by itself, its sides halved again and again."""

    def pooled(outputs: BlockOutputs, blocks: tuple[int, ...], size: Size) -> Arrays:
        arrays = []
        for k in blocks:
            array = outputs[k]
            while array.shape[1:3] != size:
                array = halve(array)
            arrays.append(array)
        return arrays

    return pooled


def _from_each(outputs: BlockOutputs, blocks: tuple[int, ...], size: Size) -> Arrays:
    """Every source pooled by itself, from its own resolution at once."""
    return [average_pool(outputs[k], size) for k in blocks]


def _together(outputs: BlockOutputs, blocks: tuple[int, ...], size: Size) -> Arrays:
    """The sources of higher resolutions as one array, as in `folded`."""
    larger = tuple(k for k in blocks if outputs.size(k) != size)
    own = [outputs[k] for k in blocks if k not in larger]
    return [outputs.pooled(larger, size), *own] if larger else own


def _by_slices(array: jax.Array) -> jax.Array:
    corners = [array[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return functools.reduce(jnp.add, corners) * jnp.asarray(0.25, array.dtype)


def _by_reshape(array: jax.Array) -> jax.Array:
    batch, height, width, channels = array.shape
    windows = array.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return windows.mean(axis=(2, 4))


def _dot(array: jax.Array, kernel: jax.Array) -> jax.Array:
    return array @ kernel


def _convolution(array: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        array,
        kernel[None, None],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _arranged(
    outputs: BlockOutputs,
    sources: Sequence[int],
    gates: jax.Array,
    kernels: Arrays,
    *_: object,
    pooled: Callable[..., Arrays] = _per_source,
    products: str = "per array",
    multiply: Callable[[jax.Array, jax.Array], jax.Array] = _dot,
    rematerialise: bool = False,
) -> jax.Array:
    """As `weighted_sum.folded`, with the arrays and products that are asked for."""
    base, size = outputs.last, outputs.size(-1)
    larger = [k for k in sources if outputs.size(k) != size]
    # `folded` puts sources of higher resolutions first; they are older.
    kernel = jnp.concatenate([gates[n] * w for n, w in enumerate(kernels)])
    kernel = kernel.astype(base.dtype)

    def added() -> jax.Array:
        arrays = pooled(outputs, tuple(sources), size)
        if products == "one":
            arrays = [jnp.concatenate(arrays, axis=-1)]
        elif products == "two":
            parts = [arrays[: len(larger)], arrays[len(larger) :]]
            arrays = [jnp.concatenate(part, axis=-1) for part in parts if part]
        total, start = None, 0
        for array in arrays:
            end = start + array.shape[-1]
            product = multiply(array, kernel[start:end])
            total = product if total is None else total + product
            start = end
        assert total is not None
        return total

    return base + (jax.checkpoint(added)() if rematerialise else added())


ARRANGEMENTS: Mapping[str, WeightedSum] = {
    name: functools.partial(_arranged, **how)  # type: ignore[arg-type]
    for name, how in {
        "a product per edge": {},
        "one product": {"products": "one"},
        "two products": {"products": "two"},
        "one product, pooled together": {"pooled": _together, "products": "one"},
        "1x1 convolutions": {"pooled": _together, "multiply": _convolution},
        "pooled from each source": {"pooled": _from_each},
        "pooled by strided slices": {"pooled": _halved_by(_by_slices)},
        "pooled by reshape and mean": {"pooled": _halved_by(_by_reshape)},
        "rematerialised": {"pooled": _together, "rematerialise": True},
    }.items()
}


class Arranged(Connections):
    """Our connections, summed by one of `ARRANGEMENTS`.

    Attributes:
      arrangement: its name.
    """

    arrangement: str = ""

    def __post_init__(self) -> None:
        """Refuses connections that the arrangements do not sum."""
        spec = self.spec
        if spec.projection not in ("per_edge", "per_stage") or spec.has_biases:
            bias = " and a bias" if spec.has_biases else ""
            raise UserError(
                f"--arrangements are of projections without bias, not of projection "
                f"'{spec.projection}'{bias}: measure a model with "
                "--config.model.connections.projection=per_edge, or a stage with "
                "--projection=per_edge."
            )
        super().__post_init__()

    @property
    def sum_function(self) -> WeightedSum:
        """The function of one block's sum."""
        return ARRANGEMENTS[self.arrangement]


SCHEMES = {name: functools.partial(Arranged, arrangement=name) for name in ARRANGEMENTS}
