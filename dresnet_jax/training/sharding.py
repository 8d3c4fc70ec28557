"""Where arrays lie: the only file that knows a mesh."""

from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dresnet_jax.errors import UserError

Tree = TypeVar("Tree")


def make_mesh(batch_size: int) -> Mesh:
    """All devices along one axis, `data`, over which a batch is split.

    Raises:
      UserError: the batch cannot be split evenly.
    """
    devices = jax.device_count()
    if batch_size % devices:
        nearest = max(1, round(batch_size / devices)) * devices
        raise UserError(
            f"data.batch_size = {batch_size} is not divisible by the {devices} "
            f"devices; the nearest that is: {nearest}."
        )
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def abstract(tree: Tree, sharding: NamedSharding) -> Tree:
    """Shapes, dtypes and shardings of a tree of arrays or shapes."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )
