"""Measures what learned connections cost, or how fast the input is, in one run.

    python -m dresnet_jax.benchmark connections --image_size=64

compiles the training step of the model in each form and of the same model without
connections, and prints the ratios of FLOPs, bytes, temporary memory and time. With
--target=v5e:2x2 or the like it is compiled for TPU chips that need not be there
(requirements-tpu-plan.txt); the time is then estimated from the compiler's counts: the
larger of FLOPs / peak and bytes / bandwidth, by the chip's published figures.

    python -m dresnet_jax.benchmark input --config=configs/fashion_mnist.py

prints the images per second of the pipeline alone, of the training step alone and of
both, on each road that examples can take to the devices.

What is timed is interleaved, so that a drift of the machine's speed hits all alike.
The config is configs/synthetic.py if none is given.
"""

import dataclasses
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import flags

from dresnet_jax import cli
from dresnet_jax.analysis import connection_costs, input_speed, reports
from dresnet_jax.connections import weighted_sum
from dresnet_jax.errors import UserError, pick

_MODEL = flags.DEFINE_string("model", None, "Model measured, instead of the config's.")
_FORMS = flags.DEFINE_list("forms", list(weighted_sum.FORMS), "Forms measured.")
_TARGET = flags.DEFINE_string(
    "target", "cpu", "Of connections: cpu for the devices here, or TPUs as v5e:2x2."
)
_ROADS = flags.DEFINE_list("roads", list(input_speed.ROADS), "Roads measured.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side of the images, pixels.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images of one step, of each chip for a --target."
)
_RUNS = flags.DEFINE_integer("runs", 15, "Timed rounds.", lower_bound=1)
_STEPS = flags.DEFINE_integer(
    "steps", 20, "Of input: training steps of each measurement.", lower_bound=1
)


def main(subject: str) -> None:
    """Measures, prints."""
    measure = pick("benchmark", subject, {"connections": _connections, "input": _input})
    config = cli.config()
    config.model.name = _MODEL.value or config.model.name
    config.data.image_size = _IMAGE_SIZE.value or config.data.image_size
    config.data.batch_size = _BATCH_SIZE.value or config.data.batch_size
    table, settings, rows = measure(config)
    machine = (
        f"jax {jax.__version__} on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}"
    )
    print(table, settings, machine, sep="\n")
    cli.finish(
        {
            "target": jax.default_backend() if _is_here() else _TARGET.value,
            "settings": settings,
            "machine": machine,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
    )


def _connections(config: ml_collections.ConfigDict) -> tuple[str, str, Sequence[Any]]:
    if _is_here():
        rows = connection_costs.measure(config, _FORMS.value, _RUNS.value)
        how = f"{_RUNS.value} interleaved steps of each"
    else:
        rows = connection_costs.estimate(config, _FORMS.value, _TARGET.value)
        how = f"compiled for {_TARGET.value}, per chip; times are estimates"
    side, dtype = config.data.image_size, config.model.dtype
    settings = f"{how}; batch {config.data.batch_size}, {side}x{side}, {dtype}"
    return reports.connection_cost_table(rows), settings, rows


def _is_here() -> bool:
    """Whether what is measured runs on the devices of this machine."""
    return _TARGET.value == "cpu"


def _input(config: ml_collections.ConfigDict) -> tuple[str, str, Sequence[Any]]:
    if not _is_here():
        raise UserError(f"--target={_TARGET.value} is for connections only.")
    rows = input_speed.measure(config, _ROADS.value, _RUNS.value, _STEPS.value)
    data = config.data
    return (
        reports.input_speed_table(rows),
        f"{_RUNS.value} interleaved rounds of {_STEPS.value} steps; {data.dataset}, "
        f"batch {data.batch_size}; streaming by {data.num_threads} threads and "
        f"{data.num_workers} further processes",
        rows,
    )


if __name__ == "__main__":
    cli.run(
        main,
        uses=(
            *("model", "forms", "target", "roads", "image_size", "batch_size", "runs"),
            *("steps", "config", "json"),
        ),
        words=("subject",),
        default_config="configs/synthetic.py",
    )
