"""Measures what connections cost, what conditional paths save, how fast the input is.

    python -m dresnet_jax.benchmark connections --depths=8,16,32,64
    python -m dresnet_jax.benchmark connections --model=dresnet18 --image_size=64
    python -m dresnet_jax.benchmark conditional --rates=1,0.75,0.5,0.25
    python -m dresnet_jax.benchmark conditional --workdir=runs/gated
    python -m dresnet_jax.benchmark input --config=configs/fashion_mnist.py

`connections` compiles the gradient of one stage of so many blocks, or the training step
of a model, in each form and without connections, and prints ratios. The chips of a
--target need not be there (requirements-tpu-plan.txt); the time is then an estimate, by
FLOPs / peak and bytes / bandwidth. --peers adds DenseFormer's average to a stage, the
original in PyTorch to a model (requirements-peers.txt). `conditional` prints the FLOPs
and the time that gates save beside the network without them: those of a run on
validation images, or of a fresh network on noise, set to some rates; in batches of 256.
`input` prints the images per second of the pipeline, of the step and of both, on each
road. Rounds are interleaved; configs/synthetic.py is the config if none is given.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import flags

from dresnet_jax import cli
from dresnet_jax.analysis import (
    conditional_costs,
    connection_costs,
    input_speed,
    plots,
    reports,
)
from dresnet_jax.errors import UserError, pick
from dresnet_jax.training import evaluation

_MODEL = flags.DEFINE_string("model", None, "Model measured, instead of one stage.")
_DEPTHS = flags.DEFINE_list("depths", ["8", "16"], "Blocks of the stage.")
_PROJECTION = flags.DEFINE_string("projection", "none", "Of the stage's connections.")
_FORMS = flags.DEFINE_list("forms", None, "Forms measured; all possible ones if none.")
_PEERS = flags.DEFINE_bool("peers", False, "Measure what others have made too.")
_ARRANGEMENTS = flags.DEFINE_bool("arrangements", False, "Of folded, the others too.")
_TRAFFIC = flags.DEFINE_bool("traffic", False, "Print where a model's bytes go.")
_TARGET = flags.DEFINE_string("target", "cpu", "The devices here, or such as v5e:2x2.")
_OUT = flags.DEFINE_string("out", None, "The picture's file, such as costs.png.")
_RATES = flags.DEFINE_list("rates", ["1", "0.75", "0.5", "0.25"], "Gates are set to.")
_ROADS = flags.DEFINE_list("roads", list(input_speed.ROADS), "Roads of input measured.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side of the images, pixels.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images, per chip of a target.")
_RUNS = flags.DEFINE_integer("runs", 7, "Timed rounds.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 20, "Of a round of input.", lower_bound=1)


# Of `conditional`, where none is given.
_CONDITIONAL_BATCH = 256


def main(subject: str) -> None:
    """Measures, prints, draws."""
    measure = pick("benchmark", subject, _SUBJECTS)
    config = cli.config()
    if subject == "conditional":
        config.data.batch_size = _CONDITIONAL_BATCH
    config.data.image_size = _IMAGE_SIZE.value or config.data.image_size
    config.data.batch_size = _BATCH_SIZE.value or config.data.batch_size
    picture = _OUT.value and cli.picture_file(_OUT.value)
    # What is compiled is timed, so it must not come from a cache.
    jax.config.update("jax_enable_compilation_cache", False)
    table, settings, rows = measure(config)
    machine = reports.machine()
    print(table, settings, machine, sep="\n")
    if picture:
        plots.save(_PICTURES[subject](rows), picture)
        print(f"picture: {_OUT.value}")
    report = {"target": _TARGET.value, "settings": settings, "machine": machine}
    cli.finish(report | {"rows": [dataclasses.asdict(row) for row in rows]})


def _connections(config: ml_collections.ConfigDict) -> tuple[str, str, Sequence[Any]]:
    asked = _MODEL.value, _FORMS.value, _DEPTHS.value, _PROJECTION.value
    added: tuple[Any, Any] = ({}, {})
    if _PEERS.value or _ARRANGEMENTS.value:
        from benchmarks import peers  # Outside the package, and no part of it.

        kinds = {"arrangements": _ARRANGEMENTS.value, "peers": _PEERS.value}
        added = peers.of(config, _MODEL.value, _TARGET.value, **kinds)
    subjects = connection_costs.subjects(config, *asked, added[0])
    if _TARGET.value == "cpu":
        rows = connection_costs.measure(subjects, _RUNS.value, added[1])
        how = f"{_RUNS.value} interleaved runs of each"
    else:
        rows = connection_costs.estimate(subjects, _TARGET.value)
        how = f"compiled for {_TARGET.value}, per chip; times are estimates"
    table = reports.connection_cost_table(rows, with_traffic=_TRAFFIC.value)
    return table, f"{how}; {reports.sizes(config)}", rows


def _conditional(config: ml_collections.ConfigDict) -> tuple[str, str, Sequence[Any]]:
    if _TARGET.value != _TARGET.default:
        raise UserError(f"--target={_TARGET.value} is for connections only.")
    batch_size = config.data.batch_size
    if flags.FLAGS["workdir"].value:
        parts, restored = evaluation.open_run(cli.workdir())
        config = parts.config
        network = conditional_costs.trained(parts, restored.state, batch_size)
    else:
        network = conditional_costs.fresh(config, _rates())
    rows = conditional_costs.measure(network, _RUNS.value)
    size, shape = len(network.batches), network.batches[0].shape
    how = f"{_RUNS.value} interleaved runs of {size} batches of {shape[0]}"
    model = f"{config.model.name}, {shape[1]}x{shape[2]}, {config.model.dtype}"
    return reports.conditional_cost_table(rows), f"{how}; {model}", rows


def _rates() -> list[float]:
    try:
        return [float(rate) for rate in _RATES.value]
    except ValueError as error:
        raise UserError(
            f"--rates={','.join(_RATES.value)} must be numbers in (0, 1]."
        ) from error


def _input(config: ml_collections.ConfigDict) -> tuple[str, str, Sequence[Any]]:
    for flag in (_TARGET, _OUT):
        if flag.value != flag.default:
            raise UserError(f"--{flag.name}={flag.value} is for connections only.")
    rows = input_speed.measure(config, _ROADS.value, _RUNS.value, _STEPS.value)
    settings = input_speed.settings(config, _RUNS.value, _STEPS.value)
    return reports.input_speed_table(rows), settings, rows


_SUBJECTS = {"connections": _connections, "conditional": _conditional, "input": _input}
_PICTURES: dict[str, Any] = {
    "connections": plots.connection_costs,
    "conditional": plots.conditional_costs_bars,
}


if __name__ == "__main__":
    of_connections = "model depths projection forms peers traffic target out"
    of_conditional = "rates workdir"
    of_all = "image_size batch_size runs config json"
    cli.run(
        main,
        uses=f"{of_connections} {of_conditional} roads steps {of_all}".split(),
        words=("subject",),
        default_config="configs/synthetic.py",
    )
