"""Where arrays lie: the only file that knows a mesh."""

import math
import os
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dresnet_jax.errors import UserError
from dresnet_jax.training import leaves

Tree = TypeVar("Tree")

# Slices of chips are copies of one another; within one, `data` splits the batch, and
# `fsdp` splits the batch and the state too.
AXES = ("replica", "data", "fsdp")

# Where the leaves of a state lie: the first pattern that is found in a leaf's path, as
# params/block_1/conv1/conv/kernel. What the optimiser and the average keep of a
# parameter has a path with the same end, and so lies as it does. A leaf whose axis
# cannot be split evenly lies whole on every device.
RULES = (
    (r"/conv/kernel$", PartitionSpec(None, None, None, "fsdp")),
    (r"/(head|connections)/.*kernel$", PartitionSpec("fsdp", None)),
    (r"", PartitionSpec()),
)


def make_mesh(
    config: ml_collections.ConfigDict,
    batch_size: int,
    devices: Sequence[jax.Device] | None = None,
    accumulate_steps: int = 1,
) -> Mesh:
    """Returns the devices, all if None, along `AXES`; a batch is split over all axes.

    So is each of the parts in which its gradients are accumulated.

    Raises:
      UserError: the axes do not fit the devices, or the batch cannot be split evenly.
    """
    devices = jax.devices() if devices is None else devices
    slices = num_slices(devices)
    replica = slices if config.replica is None else config.replica
    data = config.data
    if data is None:
        data = max(1, len(devices) // (replica * config.fsdp))
    shape = (replica, data, config.fsdp)
    if math.prod(shape) != len(devices) or replica % slices:
        raise UserError(
            f"sharding: replica {replica} x data {data} x fsdp {config.fsdp} do not "
            f"fit what was found: {len(devices)} devices in {slices} slices."
        )
    if batch_size % len(devices):
        nearest = max(1, round(batch_size / len(devices))) * len(devices)
        raise UserError(
            f"data.batch_size = {batch_size} is not divisible by the {len(devices)} "
            f"devices; the nearest that is: {nearest}."
        )
    if batch_size % (len(devices) * accumulate_steps):
        raise UserError(
            f"data.batch_size = {batch_size} is not divisible by {len(devices)} "
            f"devices x train.accumulate_steps = {accumulate_steps}."
        )
    types = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    grid = mesh_utils.create_hybrid_device_mesh(
        (replica // slices, *shape[1:]), (slices, 1, 1), devices
    )
    return Mesh(grid, AXES, axis_types=types)


def num_slices(devices: Sequence[jax.Device]) -> int:
    """Slices of a pod that the devices are of; 1 where there are no slices."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def place_state(mesh: Mesh, shapes: Tree) -> Tree:
    """Returns shapes, dtypes and shardings of a state, by `RULES`."""

    def place(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = next(spec for rule, spec in RULES if re.search(rule, f"/{name}"))
        parts = [1 if axis is None else mesh.shape[axis] for axis in spec]
        if any(size % n for size, n in zip(leaf.shape, parts, strict=False)):
            spec = PartitionSpec()
        return abstract(leaf, NamedSharding(mesh, spec))

    return leaves.map_by_name(place, shapes)


def gathered(mesh: Mesh, params: Tree) -> Tree:
    """Gathers parameters on every device, inside a program.

    Without it the compiler might split the computation in another way.
    """
    if mesh.shape["fsdp"] == 1:
        return params
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns one axis, the first if none is named, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, AXES))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a batch that lie on this process's devices, [rows], int."""
    rows = np.arange(batch_size)
    parts = split_batch(mesh).addressable_devices_indices_map(rows.shape).values()
    return np.unique(np.concatenate([rows[part] for part in parts]))


def put(array: np.ndarray, place: NamedSharding) -> jax.Array:
    """Puts an array that every process holds whole onto the devices of all."""
    return jax.make_array_from_callback(array.shape, place, lambda part: array[part])


def platform(mesh: Mesh) -> str:
    """Returns what its devices are: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def local_bytes(tree: Any) -> int:
    """Returns bytes of a tree of arrays or shapes on each device, without padding."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def device_bytes() -> int:
    """Returns the memory of one device; of a CPU device, its share of the machine's."""
    device = jax.local_devices()[0]
    if statistics := device.memory_stats():
        return statistics["bytes_limit"]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // jax.local_device_count()


def abstract(tree: Tree, sharding: NamedSharding) -> Tree:
    """Returns shapes, dtypes and shardings of a tree of arrays or shapes."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )
