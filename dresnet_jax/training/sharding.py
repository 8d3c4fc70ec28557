"""Where arrays lie: the only file that knows a mesh."""

import os
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dresnet_jax.errors import UserError

Tree = TypeVar("Tree")


def make_mesh(batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices along one axis, `data`, over which a batch is split.

    Args:
      batch_size: over all devices.
      devices: all that this program has, if None.

    Raises:
      UserError: the batch cannot be split evenly.
    """
    count = jax.device_count() if devices is None else len(devices)
    if batch_size % count:
        nearest = max(1, round(batch_size / count)) * count
        raise UserError(
            f"data.batch_size = {batch_size} is not divisible by the {count} "
            f"devices; the nearest that is: {nearest}."
        )
    return jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis, the first if none is named, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that lie on this process's devices, [rows], int."""
    rows = np.arange(batch_size)
    parts = split_batch(mesh).addressable_devices_indices_map(rows.shape).values()
    return np.unique(np.concatenate([rows[part] for part in parts]))


def put(array: np.ndarray, place: NamedSharding) -> jax.Array:
    """Puts an array that every process holds whole onto the devices of all."""
    return jax.make_array_from_callback(array.shape, place, lambda part: array[part])


def put_rows(rows: np.ndarray, place: NamedSharding, batch_axis: int) -> jax.Array:
    """Puts the `local_rows` of each process together to one array.

    Args:
      rows: what this process holds.
      place: `split_batch` along `batch_axis`.
      batch_axis: the axis of the rows.
    """
    shape = list(rows.shape)
    shape[batch_axis] *= place.num_devices // len(place.addressable_devices)
    return jax.make_array_from_process_local_data(place, rows, tuple(shape))


def device_bytes() -> int:
    """The memory of one device; of a CPU device, its share of the machine's."""
    device = jax.local_devices()[0]
    if statistics := device.memory_stats():
        return statistics["bytes_limit"]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // jax.local_device_count()


def abstract(tree: Tree, sharding: NamedSharding) -> Tree:
    """Shapes, dtypes and shardings of a tree of arrays or shapes."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )
