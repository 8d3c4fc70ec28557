"""Networks given as data: a table of layers, what each reads, and its operation."""

import dataclasses
import graphlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import yaml
from flax import linen as nn

from dresnet_jax.errors import UserError, pick, unknown
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.models.heads import Classifier
from dresnet_jax.models.layers import Layers
from dresnet_jax.models.residual import BlockSpec

# What the first layers read.
IMAGES = "images"


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer of a table.

    Attributes:
      layer: its name.
      reads: the layers whose outputs are added to be its input, or `IMAGES`.
      operation: a key of `OPERATIONS`.
      settings: of the operation, by name.
    """

    layer: str
    reads: tuple[str, ...]
    operation: str
    settings: tuple[tuple[str, Any], ...] = ()


Run = Callable[[jax.Array], jax.Array]


def _conv(layers: Layers, name: str, train: bool, **settings: Any) -> Run:
    """A convolution with norm and, with `activate`, an activation."""
    return partial(layers.conv_norm(**settings, name=name), train=train)


def _block(
    layers: Layers, name: str, train: bool, kind: str = "basic", **settings: Any
) -> Run:
    """A whole block, whose settings are those of `BlockSpec`."""
    make = pick("block", kind, BLOCKS).make
    return partial(make(BlockSpec(**settings), layers, name=name), train=train)


def _activate(layers: Layers, name: str, train: bool) -> Run:
    """The activation function alone."""
    del name, train
    return layers.activate


def _max_pool(
    layers: Layers, name: str, train: bool, kernel: int = 3, stride: int = 2
) -> Run:
    """The maximum over a square of pixels, padded as a convolution."""
    del layers, name, train
    padding = (((kernel - 1) // 2,) * 2,) * 2
    size, strides = (kernel, kernel), (stride, stride)
    return partial(nn.max_pool, window_shape=size, strides=strides, padding=padding)


def _classifier(layers: Layers, name: str, train: bool, classes: int) -> Run:
    """Average pooling and a linear layer."""
    return partial(Classifier(classes, 0.0, layers, name=name), train=train)


# (layers, name of the layer, train, the row's settings) -> what is done to its input.
OPERATIONS: dict[str, Callable[..., Run]] = {
    "conv": _conv,
    "block": _block,
    "activate": _activate,
    "max_pool": _max_pool,
    "classifier": _classifier,
}


class TableNetwork(nn.Module):
    """The network of a table; what a layer reads is added.

    Attributes:
      rows: in an order in which each layer comes after those that it reads.
      layers: what all layers have in common.
    """

    rows: tuple[Row, ...]
    layers: Layers = dataclasses.field(default_factory=Layers)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """The output of the last layer of [batch, height, width, channels].

        Raises:
          UserError: a layer reads arrays of different shapes, or its settings are
            wrong.
        """
        outputs = {IMAGES: images.astype(self.layers.dtype)}
        for row in self.rows:
            inputs = [outputs[name] for name in row.reads]
            shapes = {name: outputs[name].shape[1:] for name in row.reads}
            if len(set(shapes.values())) > 1:
                raise UserError(
                    f"Layer '{row.layer}' cannot add what it reads: "
                    f"{', '.join(f'{name} is {s}' for name, s in shapes.items())}."
                )
            operation = pick("operation", row.operation, OPERATIONS)
            x = sum(inputs[1:], inputs[0])
            try:
                run = operation(self.layers, row.layer, train, **dict(row.settings))
                outputs[row.layer] = run(x)
            except UserError:
                raise
            # Of Flax and JAX, each of a type of its own.
            except Exception as error:
                why = (str(error) or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"Layer '{row.layer}': settings {dict(row.settings)} are not those "
                    f"of '{row.operation}': {why}."
                ) from error
        return outputs[self.rows[-1].layer]


def from_table(
    table: Path | str | Sequence[Sequence[Any]],
    image_shape: tuple[int, int, int],
    layers: Layers | None = None,
) -> TableNetwork:
    """Returns the network that a table describes.

    Args:
      table: of a row per layer, (name, what it reads, operation, settings), where the
        settings may be left out; or a YAML file of such a list.
      image_shape: (height, width, channels), for which the shapes are checked.
      layers: what all layers have in common.

    Raises:
      UserError: a name is unknown or given twice, there is a cycle, several layers are
        read by none, or shapes do not fit.
    """
    if isinstance(table, Path | str):
        table = _read(Path(table))
    rows = _rows(table)
    order = _order(rows)
    read = {name for row in rows.values() for name in row.reads}
    last = [name for name in rows if name not in read]
    if len(last) != 1:
        raise UserError(
            "One layer must be read by none, the last: "
            f"{', '.join(last) or 'none'} are."
        )
    network = TableNetwork(tuple(rows[name] for name in order), layers or Layers())
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jax.eval_shape(
        lambda key, x: network.init(key, x, train=False), jax.random.key(0), images
    )
    return network


def _read(path: Path) -> Sequence[Sequence[Any]]:
    if not path.is_file():
        raise UserError(f"Table {path} does not exist.")
    try:
        result = yaml.safe_load(path.read_text())
    # Of bytes that are no text, and of a document that nests too deeply, too.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"Table {path}: {' '.join(str(error).split())}.") from error
    if not isinstance(result, list):
        raise UserError(f"Table {path} is no list of layers.")
    return result


def _rows(table: Sequence[Sequence[Any]]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for given in table:
        if not isinstance(given, list | tuple) or len(given) not in (3, 4):
            raise UserError(f"{given!r} is not (layer, reads, operation, settings).")
        layer, reads, operation, settings = (*given, {})[:4]
        if not isinstance(layer, str) or not layer.isprintable() or not layer:
            raise UserError(f"{layer!r} is no name of a layer.")
        if layer in rows or layer == IMAGES:
            raise UserError(f"Layer '{layer}' is there twice.")
        reads = [reads] if isinstance(reads, str) else reads
        are_names = isinstance(reads, list | tuple) and all(
            isinstance(name, str) for name in (*reads, operation)
        )
        if not are_names or not reads or not isinstance(settings, Mapping):
            raise UserError(f"{given!r} is not (layer, reads, operation, settings).")
        reads = tuple(reads)
        if not all(isinstance(name, str) for name in settings):
            raise UserError(f"Layer '{layer}' has a setting whose name is no text.")
        pick("operation", operation, OPERATIONS)
        rows[layer] = Row(layer, reads, operation, tuple(sorted(settings.items())))
    for row in rows.values():
        for name in row.reads:
            if name not in rows and name != IMAGES:
                raise unknown(f"layer, read by '{row.layer}',", name, [*rows, IMAGES])
    return rows


def _order(rows: Mapping[str, Row]) -> list[str]:
    """The layers, each after those that it reads."""
    graph = graphlib.TopologicalSorter({name: row.reads for name, row in rows.items()})
    try:
        return [name for name in graph.static_order() if name != IMAGES]
    except graphlib.CycleError as error:
        cycle = " reads ".join(reversed(error.args[1]))
        raise UserError(f"The table has a cycle: {cycle}.") from error
