"""TPU chips for which programs are compiled without the hardware, and their speed."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from dresnet_jax.errors import UserError, pick


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of a chip.

    From Google Cloud's page on each TPU version (cloud.google.com/tpu/docs/v5e and so
    on), and where that is silent: v4's links from Jouppi et al. (2023); the network of
    v4 and v6e, and which links close to a ring, from "How to Scale Your Model"
    (jax-ml.github.io/scaling-book/tpus).

    Attributes:
      flops_per_second: peak of bfloat16 products.
      bytes_per_second: between the chip and its memory.
      hbm_bytes: of its memory, what the compiler lets a program use, as it says where
        one does not fit.
      link_bytes_per_second: of one link to a neighbour, one way.
      network_bytes_per_second: between slices through the hosts' network, a chip's
        share, one way.
      ring: a slice's axis closes to a ring where its length is a multiple of this.
      cores: how the compiler takes the cores of a chip; "megacore" joins two to one,
        as JAX does where the chip is there.
    """

    flops_per_second: float
    bytes_per_second: float
    hbm_bytes: int
    link_bytes_per_second: float
    network_bytes_per_second: float
    ring: int
    cores: str = "default"


CHIPS = {
    "v4": Chip(
        flops_per_second=275e12,
        bytes_per_second=1228e9,
        hbm_bytes=int(30.75 * 2**30),
        link_bytes_per_second=50e9,
        network_bytes_per_second=6.25e9,
        ring=4,
        cores="megacore",
    ),
    "v5e": Chip(
        flops_per_second=197e12,
        bytes_per_second=819e9,
        hbm_bytes=int(15.75 * 2**30),
        link_bytes_per_second=50e9,
        network_bytes_per_second=3.125e9,
        ring=16,
    ),
    "v5p": Chip(
        flops_per_second=459e12,
        bytes_per_second=2765e9,
        hbm_bytes=int(95.74 * 2**30),
        link_bytes_per_second=100e9,
        network_bytes_per_second=6.25e9,
        ring=4,
        cores="megacore",
    ),
    "v6e": Chip(
        flops_per_second=918e12,
        bytes_per_second=1640e9,
        hbm_bytes=int(31.25 * 2**30),
        link_bytes_per_second=100e9,
        network_bytes_per_second=12.5e9,
        ring=16,
    ),
}


# Peaks of bfloat16 products, FLOPs per second, by the start of the name that JAX gives
# a device; GPUs by NVIDIA's data sheets, without sparsity.
_PEAKS = {
    "TPU v4": CHIPS["v4"].flops_per_second,
    "TPU v5 lite": CHIPS["v5e"].flops_per_second,
    "TPU v5": CHIPS["v5p"].flops_per_second,
    "TPU v6 lite": CHIPS["v6e"].flops_per_second,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Returns the peak of a device here, FLOPs per second; None where not known."""
    kinds = [kind for kind in _PEAKS if device.device_kind.startswith(kind)]
    return _PEAKS[kinds[0]] if kinds else None


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips that need not be here.

    Attributes:
      name: as a person writes it, "v5e:4x4", or "2xv5e:4x4" for two such slices.
      chip: each of them.
      slice_name: "v5e:4x4".
      slices: how many.
    """

    name: str
    chip: Chip
    slice_name: str
    slices: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips of a slice along each of its axes."""
        return tuple(int(n) for n in self.slice_name.partition(":")[2].split("x"))

    @property
    def links_bytes_per_second(self) -> float:
        """What a chip can send to its neighbours in a collective of its whole slice.

        Along an axis that closes to a ring both ways are used, along another the worth
        of one, and all axes at once.
        """
        rings = [size % self.chip.ring == 0 for size in self.shape]
        if len(rings) == 3:
            # Rings are closed between cubes of 4x4x4 chips only.
            rings = [all(rings)] * 3
        ways = [
            2 if is_ring else 1
            for size, is_ring in zip(self.shape, rings, strict=True)
            if size > 1
        ]
        return sum(ways) * self.chip.link_bytes_per_second


def parse(name: str) -> Target:
    """Returns the target that a person named, such as "v5e:2x2" or "2xv5e:4x4".

    Raises:
      UserError: it has no such form, or the chip is unknown.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(([a-z]\w*):[1-9]\d*(?:x[1-9]\d*)+)", name)
    if not match or match[1] == "0":
        raise UserError(
            f"--target={name} must be cpu, or a TPU and how its chips lie, such as "
            "v5e:2x2 or v4:2x2x1, or 2xv5e:4x4 for two such slices; known are "
            f"{', '.join(CHIPS)}."
        )
    return Target(name, pick("TPU", match[3], CHIPS), match[2], int(match[1] or 1))


def devices(target: Target) -> list[jax.Device]:
    """Returns the chips of a target, for which programs can be compiled but not run.

    Raises:
      UserError: the target does not exist, or the compiler is missing.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--target={target.name} needs the TPU's compiler: "
            "pip install -r requirements-tpu-plan.txt"
        )
    # The compiler would look for the machine that holds a TPU, and JAX for the TPU.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    jax.config.update("jax_platforms", "cpu")
    settings: dict[str, Any] = {"chip_config_name": target.chip.cores}
    if target.slices > 1:
        settings["num_slices"] = target.slices
    if math.prod(target.shape) == 1:
        settings["chips_per_host_bounds"] = [1, 1, 1]
    try:
        result = topologies.get_topology_desc(
            platform="tpu", topology_name=target.slice_name, **settings
        )
    except (ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(
            f"--target={target.name} is not possible: {first_line}"
        ) from error
    return list(result.devices)
