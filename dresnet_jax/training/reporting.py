"""What a run says of itself at its end."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import optax
from etils import epath

import dresnet_jax
from dresnet_jax.connections import gate_values
from dresnet_jax.training import (
    checkpointing,
    connection_report,
    evaluation,
    json_files,
    metrics,
    processes,
    workdir,
)
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.inputs import Splits
from dresnet_jax.training.state import TrainState


def report(
    experiment: Experiment,
    directory: epath.Path,
    splits: Splits,
    state: TrainState,
    growth: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates the step that the config asks for, and writes `report.json`.

    Args:
      experiment: what was trained.
      directory: the run directory.
      splits: its data.
      state: of the last step.
      growth: what is reported of a network that has grown, instead of how far its
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
    found: dict[str, Any] = {
        "workdir": str(directory),
        "model": experiment.config.model.name,
        "dataset": experiment.dataset.name,
        "seed": experiment.config.seed,
        "steps": experiment.num_steps,
        "data": experiment.inputs.description,
        "connections": connection_report.description(experiment),
        "params": optax.tree.size(state.params),
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
        drift = gate_values.drift(metrics.first_gates(directory), found["gates"])
        found |= {"gate_drift": drift} if growth is None else growth
        json_files.write_json(directory / "report.json", found)
    return found


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
