"""Costs of a program: its FLOPs, the compiler's counts, and interleaved times."""

import dataclasses
import os
import platform
import re
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

Name = TypeVar("Name", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run of a program costs each device.

    Attributes:
      flops: floating-point operations, as `counting.flops` counts them.
      bytes_accessed: bytes read and written by one run, as XLA's cost model counts.
      temp_bytes: memory for intermediate values.
      argument_bytes: memory of the arguments.
    """

    flops: float
    bytes_accessed: float
    temp_bytes: int
    argument_bytes: int


def of(compiled: jax.stages.Compiled, flops: float) -> Cost:
    """Reads the compiler's counts of a program.

    `flops` are of one run on each device, counted before it was compiled.
    """
    analysis = compiled.cost_analysis()
    memory = compiled.memory_analysis()
    if analysis is None or memory is None:
        raise RuntimeError("The compiler of this platform reports no costs.")
    return Cost(
        flops=flops,
        bytes_accessed=analysis["bytes accessed"],
        temp_bytes=memory.temp_size_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
    )


def interleaved_seconds(
    programs: Mapping[Name, Callable[[], object]], runs: int
) -> dict[Name, np.ndarray]:
    """Times several programs in turn, A B C A B C ..., so that drift hits all alike.

    Args:
      programs: each runs once when called, and returns arrays to wait for.
      runs: timed runs of each, after one that is not.

    Returns:
      Seconds of every run, [runs] for each program.
    """
    for program in programs.values():
        jax.block_until_ready(program())
    seconds: dict[Name, list[float]] = {name: [] for name in programs}
    for _ in range(runs):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - start)
    return {name: np.asarray(values) for name, values in seconds.items()}


def machine() -> str:
    """Returns what this program runs on."""
    return (
        f"jax {jax.__version__} on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores{_processor()}; "
        f"Python {platform.python_version()}"
    )


def _processor() -> str:
    """The processor's name and widest vectors, where Linux has them."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    widest = next((kind for kind in ("avx512f", "avx2") if f" {kind}" in text), "")
    return f" of {name[1]}{' with ' + widest if widest else ''}" if name else ""
