"""Measures what learned connections cost, or how fast the input is, in one run.

    python -m dresnet_jax.benchmark connections --depths=8,16,32,64

compiles the gradient of a network of one stage of so many blocks, in each form and
without connections, and prints the ratios of FLOPs, bytes, memory and time.

    python -m dresnet_jax.benchmark connections --model=dresnet18 --image_size=64

does so for the training step of a model. With --target=v5e:2x2 or the like it is
compiled for TPU chips that need not be there (requirements-tpu-plan.txt); the time is
then estimated from the compiler's counts: the larger of FLOPs / peak and bytes /
bandwidth, by the chip's published figures. --peers adds what others have made:
DenseFormer's average to a stage, the original model in PyTorch to a model
(requirements-peers.txt). --out=costs.png draws the ratios.

    python -m dresnet_jax.benchmark input --config=configs/fashion_mnist.py

prints the images per second of the pipeline alone, of the training step alone and of
both, on each road that examples can take to the devices.

What is timed is interleaved, so that a drift of the machine's speed hits all alike.
The config is configs/synthetic.py if none is given.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags

from dresnet_jax import cli
from dresnet_jax.analysis import connection_costs, input_speed, plots, reports
from dresnet_jax.errors import UserError, pick

_MODEL = flags.DEFINE_string("model", None, "Model measured, instead of one stage.")
_DEPTHS = flags.DEFINE_list("depths", ["8", "16", "32"], "Blocks of the stage.")
_PROJECTION = flags.DEFINE_string(
    "projection", "none", "Of the stage: none, per_stage or per_edge."
)
_FORMS = flags.DEFINE_list("forms", None, "Forms measured; all possible ones if none.")
_PEERS = flags.DEFINE_bool("peers", False, "Measure what others have made too.")
_TARGET = flags.DEFINE_string(
    "target", "cpu", "Of connections: cpu for the devices here, or TPUs as v5e:2x2."
)
_OUT = flags.DEFINE_string("out", None, "The picture's file, such as costs.png.")
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
    """Measures, prints, draws."""
    measure = pick("benchmark", subject, {"connections": _connections, "input": _input})
    config = cli.config()
    config.data.image_size = _IMAGE_SIZE.value or config.data.image_size
    config.data.batch_size = _BATCH_SIZE.value or config.data.batch_size
    table, settings, rows = measure(config)
    machine = reports.machine()
    print(table, settings, machine, sep="\n")
    if _OUT.value:
        plots.save(plots.connection_costs(rows), cli.picture_file(_OUT.value))
        print(f"picture: {_OUT.value}")
    cli.finish(
        {
            "target": _TARGET.value,
            "settings": settings,
            "machine": machine,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
    )


def _connections(config: ml_collections.ConfigDict) -> tuple[str, str, Sequence[Any]]:
    schemes, others = _peers(config) if _PEERS.value else ({}, {})
    forms, target = _FORMS.value, _TARGET.value
    subjects = [
        connection_costs.stage_gradient(config, d, _PROJECTION.value, forms, schemes)
        for d in _DEPTHS.value
    ]
    if _MODEL.value:
        subjects = [connection_costs.model_step(config, _MODEL.value, forms)]
    if target == "cpu":
        rows = connection_costs.measure(subjects, _RUNS.value, others)
        how = f"{_RUNS.value} interleaved runs of each"
    else:
        rows = connection_costs.estimate(subjects, target)
        how = f"compiled for {target}, per chip; times are estimates"
    return reports.connection_cost_table(rows), f"{how}; {reports.sizes(config)}", rows


def _peers(config: ml_collections.ConfigDict) -> tuple[Any, Any]:
    """Schemes for a stage, and steps of the original model beside one of ours."""
    from benchmarks import peers  # Outside the package, and no part of it.

    if not _MODEL.value:
        return peers.SCHEMES, {}
    if _TARGET.value != "cpu":
        raise UserError("--peers of a model are measured here, not for a --target.")
    return {}, peers.pytorch_steps(config, connection_costs.PLAIN)


def _input(config: ml_collections.ConfigDict) -> tuple[str, str, Sequence[Any]]:
    for flag in (_TARGET, _OUT):
        if flag.value != flag.default:
            raise UserError(f"--{flag.name}={flag.value} is for connections only.")
    rows = input_speed.measure(config, _ROADS.value, _RUNS.value, _STEPS.value)
    settings = input_speed.settings(config, _RUNS.value, _STEPS.value)
    return reports.input_speed_table(rows), settings, rows


if __name__ == "__main__":
    cli.run(
        main,
        uses=(
            *("model", "depths", "projection", "forms", "peers", "target", "roads"),
            *("image_size", "batch_size", "runs", "steps", "out", "config", "json"),
        ),
        words=("subject",),
        default_config="configs/synthetic.py",
    )
