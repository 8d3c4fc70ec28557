"""What a run reports: of its connections at the start, of itself at the end."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from absl import logging
from etils import epath

import dresnet_jax
from dresnet_jax.connections import gate_values
from dresnet_jax.connections.spec import MAX_GROWTH
from dresnet_jax.models import zoo
from dresnet_jax.training import (
    checkpointing,
    evaluation,
    json_files,
    metrics,
    processes,
    sharding,
    workdir,
)
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.inputs import Splits
from dresnet_jax.training.state import TrainState, num_parameters

# Share of a plain network's parameters or FLOPs above which connections are warned of.
_MUCH_ADDED = 0.1


def connections(experiment: Experiment) -> str:
    """Returns how many connections there are, and how their sum is computed."""
    spec = experiment.model.spec.connections
    if not spec.topology.edges:
        return "none"
    why = ""
    if experiment.config.model.connections.form == zoo.AUTOMATIC:
        where = sharding.platform(experiment.mesh)
        _, reason = zoo.chosen_form(experiment.model.spec, where)
        why = f", chosen since {reason}"
    narrow = spec.projection == "between_stages"
    rank = f" of rank {spec.projection_rank}" if narrow else ""
    return (
        f"{len(spec.topology.edges)}, projection '{spec.projection}'{rank}, "
        f"form '{spec.form}'{why}"
    )


def print_connection_cost(experiment: Experiment) -> None:
    """Prints what connections add, and warns where it is more than a tenth."""
    if not experiment.model.spec.connections.topology.edges:
        return
    params, flops = connection_cost(experiment)
    text = f"connections add {100 * params:.1f} % to the parameters"
    if flops is not None:
        text += f" and {100 * flops:.1f} % to the FLOPs of a step"
    processes.say(text)
    growth = experiment.model.spec.connections.start_growth
    if growth > 2 * MAX_GROWTH:
        logging.warning(
            "At the start images may grow by a factor of up to %.3g in a stage: "
            "model.connections.initial_gate=bounded keeps that at %g.",
            growth,
            MAX_GROWTH,
        )
    if max(params, flops or 0.0) > _MUCH_ADDED:
        logging.warning(
            "More than %.0f %%: model.connections.projection=between_stages, a "
            "smaller projection_rank and topology=stage_ends cost less.",
            100 * _MUCH_ADDED,
        )


def connection_cost(experiment: Experiment) -> tuple[float, float | None]:
    """Returns what connections add to the parameters and FLOPs of the plain network.

    As shares of what that has. The second is None in the form `stacked`, which also
    computes the blocks twice.
    """
    params = experiment.create_state(abstract=True).params
    own = num_parameters(params.get("connections", {}))
    more_params = own / (num_parameters(params) - own)
    if experiment.model.spec.connections.form == "stacked":
        return more_params, None
    in_all = experiment.step_flops
    own_flops = experiment.programs.connection_flops or 0.0
    return more_params, own_flops / (in_all - own_flops)


def report(
    experiment: Experiment,
    directory: epath.Path,
    splits: Splits,
    state: TrainState,
    growth: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates the step that the config asks for, and writes `report.json`.

    `growth` is what is reported of a network that has grown, instead of how far its
    gates moved: its blocks may have other numbers than at the start.
    """
    step = experiment.num_steps
    if experiment.config.train.report_on == "best":
        best = processes.first_alone(lambda: _best_step(directory))
        step = processes.agreed(best or 0)
        abstract = experiment.create_state(abstract=True)
        restored = checkpointing.restore(directory, abstract, step)
        assert restored is not None, "one was named"
        state = restored.state
    validation, test = (
        evaluation.evaluate(experiment, state, splits[name])
        for name in ("validation", "test")
    )
    result: dict[str, Any] = {
        "workdir": str(directory),
        "model": experiment.config.model.name,
        "dataset": experiment.dataset.name,
        "seed": experiment.config.seed,
        "steps": experiment.num_steps,
        "data": experiment.inputs.description,
        "connections": connections(experiment),
        "params": num_parameters(state.params),
        "val_loss": validation.loss,
        "val_accuracy": validation.accuracy,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "skipped_records": {"validation": validation.skipped, "test": test.skipped},
        "gates": experiment.gate_values(state),
        "gate_sharpness": gate_values.sharpness(state.eval_params),
        "versions": versions(),
        "reported_step": step,
    }
    if processes.is_first():
        workdir.require_held(directory)
        drift = gate_values.drift(metrics.first_gates(directory), result["gates"])
        result |= {"gate_drift": drift} if growth is None else growth
        json_files.write_json(directory / "report.json", result)
    return result


def _best_step(directory: epath.Path) -> int:
    """The first of the steps with the highest validation accuracy that are kept."""
    kept = checkpointing.steps(directory)
    accuracies = {
        line["step"]: line["val_accuracy"]
        for line in metrics.read(directory)
        if "val_accuracy" in line and line["step"] in kept
    }
    return min(accuracies, key=lambda step: (-accuracies[step], step))


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package and those it depends on most."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {
        "python": platform.python_version(),
        "dresnet_jax": dresnet_jax.__version__,
        **{package: metadata.version(package) for package in packages},
    }
