"""Networks that grow compared with networks that do not, for the same training."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from dresnet_jax import defaults
from dresnet_jax.comparison import plots, statistics
from dresnet_jax.costs import cost
from dresnet_jax.errors import UserError
from dresnet_jax.figures import pictures
from dresnet_jax.structure import changes
from dresnet_jax.structure.growth import events, training
from dresnet_jax.training import (
    checkpointing,
    evaluation,
    experiment,
    json_files,
    loop,
    optimizer,
    run_config,
    watching,
    workdir,
)

GROWN = "grown"
# What it is compared with, each for as many multiply-adds of training.
LAST, FIRST, RANDOM = "its last structure", "its first structure", "grown at random"
VARIANTS = (GROWN, LAST, FIRST, RANDOM)
# What a run that grows at random costs is known only after it: with other steps it is
# tried again, at most so often, until one comes so near; else the nearest counts.
_TRIES, _NEAR = 4, 0.05


def check(config: ml_collections.ConfigDict) -> None:
    """Checks a comparison whose `base` grows.

    Raises:
      UserError: a value is wrong.
    """
    if config.seeds < 1:
        raise UserError(f"seeds = {config.seeds} must be above 0.")
    events.check(experiment.build(config.base))


def run(
    config: ml_collections.ConfigDict, directory: epath.Path, command: str
) -> dict[str, Any]:
    """Trains what is missing, seed by seed; writes and returns the report.

    The config is checked before, and the directory is claimed; it then holds
    report.json and report.md. `command` is the command line that made it.
    """
    result: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        for name, report in _of_seed(config.base, seed, directory).items():
            result[name].append(report)
    report = _report(config, result, command)
    json_files.write_json(directory / "report.json", report)
    figure = plots.accuracy(report["variants"])
    pictures.save(figure, directory / "accuracy.png")
    (directory / "report.md").write_text(_page(report))
    return report


def _of_seed(
    base: ml_collections.ConfigDict, seed: int, directory: epath.Path
) -> dict[str, dict[str, Any]]:
    """The report of each variant, with its `training_multiply_adds`."""

    def place(name: str) -> epath.Path:
        return directory / "runs" / name.replace(" ", "_") / str(seed)

    start = defaults.replace(base, {"seed": seed})
    grown = _trained(start, place(GROWN))
    spent, structure = grown["training_multiply_adds"], _structure(start, place(GROWN))
    # Its choices cost nothing: for them it is trained on.
    chosen = sum(
        entry["passes"] * entry["multiply_adds"][0] * start.data.batch_size
        for entry in grown["history"]
        if "multiply_adds" in entry
    )
    longer = grown["steps"] + round(chosen / _each_step(structure))
    result = {GROWN: grown}
    for name, own in ((LAST, structure), (FIRST, start)):
        steps = round(spent / _each_step(own))
        config = defaults.replace(own, {"growth.events": (), "train.num_steps": steps})
        report = _trained(config, place(name))
        result[name] = report | {"training_multiply_adds": steps * _each_step(config)}
    return result | {RANDOM: _by_chance(start, longer, spent, place)}


def _by_chance(
    start: ml_collections.ConfigDict,
    steps: int,
    spent: int,
    place: Callable[[str], epath.Path],
) -> dict[str, Any]:
    """The report of a run whose events are drawn, which has cost nearly as much.

    Args:
      start: the config of the run that grows.
      steps: of the first try.
      spent: the multiply-adds that it shall cost.
      place: gives the directory of each try, by its name.
    """
    growth, epoch = start.growth, experiment.build(start).steps_per_epoch
    *_, event = optimizer.event_steps(growth, epoch)
    least = event + growth.trial_epochs * epoch
    result: dict[int, dict[str, Any]] = {}
    for number in range(_TRIES):
        config = defaults.replace(
            start, {"train.num_steps": max(steps, least), "growth.choose": "random"}
        )
        directory = place(f"{RANDOM} {number}")
        report = _trained(config, directory)
        off = spent - report["training_multiply_adds"]
        result.setdefault(abs(off), report)
        if abs(off) <= _NEAR * spent:
            break
        last = _each_step(_structure(start, directory))
        steps = report["steps"] + round(off / last)
    return result[min(result)]


def _structure(
    start: ml_collections.ConfigDict, directory: epath.Path
) -> ml_collections.ConfigDict:
    """The config with the structure that a run has come to."""
    newest = checkpointing.newest(directory)
    assert newest is not None, "the run has ended"
    return evaluation.config_of(start, newest[1])


def _each_step(config: ml_collections.ConfigDict) -> int:
    """Multiply-adds of a step of training."""
    each = changes.products(experiment.build(config))
    return changes.step_passes(config) * each * config.data.batch_size


def _trained(
    config: ml_collections.ConfigDict, directory: epath.Path
) -> dict[str, Any]:
    """The report of a run, which is trained to its end if it is not done."""
    path = directory / "report.json"
    if path.exists():
        run_config.require_config(directory, config)
        return json.loads(path.read_text())
    with (
        workdir.claim(directory, config, overwrite=False),
        (directory / "log.txt").open("a") as log,
        contextlib.redirect_stdout(log),
    ):
        if config.growth.events:
            watch = functools.partial(watching.Watch, directory)
            training.run(config, directory, watch)
        else:
            loop.run(experiment.build(config), directory)
    result = json.loads(path.read_text())
    print(f"{directory}: test accuracy {result['test_accuracy']:.4f}", flush=True)
    return result


def _report(
    config: ml_collections.ConfigDict,
    finished: Mapping[str, Sequence[dict[str, Any]]],
    command: str,
) -> dict[str, Any]:
    """The figures of all variants, and how far the grown one is above the others."""
    fields = ("test_accuracy", "params", "steps", "training_multiply_adds")
    figures = {
        name: {field: [report[field] for report in reports] for field in fields}
        for name, reports in finished.items()
    }
    values = {name: one["test_accuracy"] for name, one in figures.items()}
    spent = {name: one["training_multiply_adds"] for name, one in figures.items()}
    variants = {
        name: {
            **one,
            "test_accuracy": statistics.summary(values[name], statistics.SHARE),
            "cost": [a / b for a, b in zip(spent[name], spent[GROWN], strict=True)],
        }
        for name, one in figures.items()
    }
    others = [name for name in VARIANTS if name != GROWN]
    differences = [statistics.paired(values[GROWN], values[name]) for name in others]
    corrected = statistics.holm([one.p for one in differences])
    result = {
        "question": config.question,
        "command": command,
        "dataset": config.base.data.dataset,
        "first_seed": config.first_seed,
        "seeds": config.seeds,
        "machine": cost.machine(),
        "variants": variants,
        "grown_against": {
            name: {**dataclasses.asdict(one.estimate), "p": one.p, "corrected_p": p}
            for name, one, p in zip(others, differences, corrected, strict=True)
        },
        "history": [report["history"] for report in finished[GROWN]],
    }
    return json_files.finite(result)


def table(report: Mapping[str, Any]) -> str:
    """Formats as Markdown a row per variant, and one per difference."""
    lines = [
        "| variant | test accuracy | 95 % interval | parameters | steps | cost |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in report["variants"].items():
        accuracy = one["test_accuracy"]
        lines.append(
            f"| {name} | {statistics.percent(accuracy['mean'])} | "
            f"{statistics.percent_interval(accuracy)} | "
            f"{_span(one['params'])} | {_span(one['steps'])} | "
            f"{_span(one['cost'], '.3f')} |"
        )
    lines += [
        "",
        "| grown is above | points | 95 % interval | p | corrected |",
        "|---|---|---|---|---|",
    ]
    for name, one in report["grown_against"].items():
        ps = ("-" if p is None else f"{p:.3f}" for p in (one["p"], one["corrected_p"]))
        lines.append(
            f"| {name} | {statistics.percent(one['mean'])} | "
            f"{statistics.percent_interval(one)} | {' | '.join(ps)} |"
        )
    return "\n".join(lines)


def _page(report: Mapping[str, Any]) -> str:
    events_of = "\n".join(
        f"- seed {report['first_seed'] + number}: "
        + "; ".join(f"{e['kind']} at step {e['step']} {e['result']}" for e in history)
        for number, history in enumerate(report["history"])
    )
    return (
        f"# {report['question']}\n\n    {report['command']}\n\n"
        f"{report['seeds']} seeds from {report['first_seed']} on, {report['dataset']}; "
        f"{report['machine']}. Cost is the multiply-adds of all training, with trials "
        "and with what it took to choose, as a part of the grown network's.\n\n"
        f"{table(report)}\n\n![Test accuracy of each variant](accuracy.png)\n\n"
        f"Events of the grown networks:\n\n{events_of}\n"
    )


def _span(values: Sequence[float], form: str = ",.0f") -> str:
    low, high = min(values), max(values)
    ends = [format(value, form) for value in (low, high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
