"""Measures what connections cost, what conditional paths save, how fast the input is.

    python -m dresnet_jax.benchmark connections --depths=8,16,32,64
    python -m dresnet_jax.benchmark connections --model=dresnet18 --image_size=64
    python -m dresnet_jax.benchmark conditional --rates=1,0.75,0.5,0.25
    python -m dresnet_jax.benchmark conditional --workdir=runs/gated
    python -m dresnet_jax.benchmark input --config=configs/fashion_mnist.py

`connections` compiles the gradient of one stage of this many blocks, or the training
step of a model, in each form and without connections, and prints ratios. The chips of a
--target need not be there (requirements-tpu-plan.txt); the time is then an estimate, by
FLOPs / peak and bytes / bandwidth. --peers adds DenseFormer's average to a stage, the
original in PyTorch to a model (requirements-peers.txt). `conditional` prints the FLOPs
and the time that gates save compared with the network without them: those of a run on
validation images, or of a fresh network on noise, set to some rates; in batches of 256.
`input` prints the images per second of the pipeline, of the step and of both, for each
input pipeline. Rounds are interleaved; configs/synthetic.py is the config if none is
given.
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections

from dresnet_jax.commands import cli
from dresnet_jax.errors import UserError, pick

command = cli.Command(
    __doc__,
    "config workdir compilation_cache json",
    words=("subject",),
    default_config="synthetic",
)

_MODEL = command.flag("model", str, "Model measured, instead of one stage.")
_DEPTHS = command.flag("depths", ["8", "16"], "Blocks of the stage.")
_PROJECTION = command.flag("projection", "none", "Of the stage's connections.")
_FORMS = command.flag("forms", list, "Forms measured; all possible ones if none.")
_PEERS = command.flag("peers", False, "Measure what others have made too.")
_TRAFFIC = command.flag("traffic", False, "Print where a model's bytes go.")
_TARGET = command.flag("target", "cpu", "The devices here, or such as v5e:2x2.")
_OUT = command.flag("out", str, "The picture's file, such as costs.png.")
_RATES = command.flag("rates", ["1", "0.75", "0.5", "0.25"], "Gates are set to.")
_MODES = command.flag("modes", list, "Input pipelines measured; all if not given.")
command.renamed("roads", "modes")
_IMAGE_SIZE = command.flag("image_size", int, "Side of the images, pixels.")
_BATCH_SIZE = command.flag("batch_size", int, "Images, per chip of a target.")
_RUNS = command.flag("runs", 7, "Timed rounds.", lower_bound=1)
_STEPS = command.flag("steps", 20, "Of a round of input.", lower_bound=1)


@command.main
def main(subject: str) -> None:
    """Measures, prints, draws."""
    measure = pick("benchmark", subject, _SUBJECTS)
    config = command.config()
    config.data.image_size = _IMAGE_SIZE.value or config.data.image_size
    config.data.batch_size = _BATCH_SIZE.value or config.data.batch_size
    picture = _OUT.value and cli.new_file("out", _OUT.value, ".png")
    table, settings, rows = measure(config)

    from dresnet_jax.costs import cost, plots
    from dresnet_jax.figures import pictures

    machine = cost.machine()
    print(table, settings, machine, sep="\n")
    if picture:
        draw: dict[str, Any] = {
            "connections": plots.connection_costs,
            "conditional": plots.conditional_costs_bars,
        }
        pictures.save(draw[subject](rows), picture)
        print(f"picture: {_OUT.value}")
    report = {"target": _TARGET.value, "settings": settings, "machine": machine}
    command.finish(report | {"rows": [dataclasses.asdict(row) for row in rows]})


def _connections(config: ml_collections.ConfigDict) -> tuple[str, str, Sequence[Any]]:
    from dresnet_jax.costs import connection_costs, tables

    command.use_compilation_cache()
    asked = _MODEL.value, _FORMS.value, _DEPTHS.value, _PROJECTION.value
    added: tuple[Any, Any] = ({}, {})
    if _PEERS.value:
        if importlib.util.find_spec("benchmarks") is None:
            raise UserError("--peers needs a checkout of this project: run it there.")
        from benchmarks import peers  # Outside the package, and no part of it.

        added = peers.of(config, _MODEL.value, _TARGET.value)
    subjects = connection_costs.subjects(config, *asked, added[0])
    if _TARGET.value == "cpu":
        rows = connection_costs.measure(subjects, _RUNS.value, added[1])
        how = f"{_RUNS.value} interleaved runs of each"
    else:
        rows = connection_costs.estimate(subjects, _TARGET.value)
        how = f"compiled for {_TARGET.value}, per chip; times are estimates"
    table = tables.connection_cost_table(rows, with_traffic=_TRAFFIC.value)
    return table, f"{how}; {tables.sizes(config)}", rows


def _conditional(config: ml_collections.ConfigDict) -> tuple[str, str, Sequence[Any]]:
    if _TARGET.value != _TARGET.default:
        raise UserError(f"--target={_TARGET.value} is for connections only.")
    if _IMAGE_SIZE.value and command.flags.workdir:
        raise UserError(f"--image_size={_IMAGE_SIZE.value}: a run has its own.")
    try:
        rates = [float(rate) for rate in _RATES.value]
    except ValueError as error:
        raise UserError(
            f"--rates={','.join(_RATES.value)} must be numbers in (0, 1]."
        ) from error

    from dresnet_jax.costs import conditional_costs, tables
    from dresnet_jax.training import evaluation

    command.use_compilation_cache()
    if command.flags.workdir:
        exp, restored = evaluation.open_run(command.workdir())
        config = exp.config
        network = conditional_costs.trained(exp, restored.state, _BATCH_SIZE.value)
    else:
        config.data.batch_size = _BATCH_SIZE.value or conditional_costs.BATCH_SIZE
        network = conditional_costs.fresh(config, rates)
    rows = conditional_costs.measure(network, _RUNS.value)
    size, shape = len(network.batches), network.batches[0].shape
    how = f"{_RUNS.value} interleaved runs of {size} batches of {shape[0]}"
    model = f"{config.model.name}, {shape[1]}x{shape[2]}, {config.model.dtype}"
    return tables.conditional_cost_table(rows), f"{how}; {model}", rows


def _input(config: ml_collections.ConfigDict) -> tuple[str, str, Sequence[Any]]:
    for flag in (_TARGET, _OUT):
        if flag.value != flag.default:
            raise UserError(f"--{flag.name}={flag.value} is for connections only.")

    from dresnet_jax.costs import input_speed, tables

    command.use_compilation_cache()
    modes = input_speed.MODES if _MODES.value is None else _MODES.value
    rows = input_speed.measure(config, modes, _RUNS.value, _STEPS.value)
    settings = input_speed.settings(config, _RUNS.value, _STEPS.value)
    return tables.input_speed_table(rows), settings, rows


_SUBJECTS = {"connections": _connections, "conditional": _conditional, "input": _input}


if __name__ == "__main__":
    sys.exit(command.run())
