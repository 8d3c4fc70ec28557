"""TPU chips that programs are compiled for without having one, and their speed."""

import dataclasses
import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from dresnet_jax.analysis.cost import Cost
from dresnet_jax.errors import UserError, pick


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of a chip (Google Cloud documentation of each TPU version).

    Attributes:
      flops_per_second: peak of bfloat16 products.
      bytes_per_second: between the chip and its memory.
      cores: how the compiler takes the cores of a chip; "megacore" joins two to one,
        as JAX does where the chip is there.
    """

    flops_per_second: float
    bytes_per_second: float
    cores: str = "default"

    def roofline_seconds(self, cost: Cost) -> float:
        """The least time for a program's FLOPs and for its bytes: the larger."""
        return max(
            cost.flops / self.flops_per_second,
            cost.bytes_accessed / self.bytes_per_second,
        )


CHIPS = {
    "v4": Chip(flops_per_second=275e12, bytes_per_second=1228e9, cores="megacore"),
    "v5e": Chip(flops_per_second=197e12, bytes_per_second=819e9),
    "v6e": Chip(flops_per_second=918e12, bytes_per_second=1640e9),
}


def chip(target: str) -> Chip:
    """The chip of a target, such as "v5e:2x2".

    Raises:
      UserError: it has no such form, or the chip is unknown.
    """
    if not re.fullmatch(r"\w+:\d+(x\d+)+", target):
        raise UserError(
            f"--target={target} must be cpu, or a TPU and how its chips lie, such as "
            f"v5e:2x2 or v4:2x2x1; known are {', '.join(CHIPS)}."
        )
    return pick("TPU", target.partition(":")[0], CHIPS)


def devices(target: str) -> list[jax.Device]:
    """The chips of a target, for which programs can be compiled but not run.

    Raises:
      UserError: the target is unknown or does not exist, or the compiler is missing.
    """
    cores = chip(target).cores
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--target={target} needs the TPU's compiler: "
            "pip install -r requirements-tpu-plan.txt"
        )
    # The compiler would look for the machine that holds a TPU, and JAX for the TPU.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    jax.config.update("jax_platforms", "cpu")
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=target, chip_config_name=cores
        )
    except (ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"--target={target} is not possible: {first_line}") from error
    return list(found.devices)
