"""A grid of runs: variants of one config, several seeds of each, equal budgets."""

import copy
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from etils import epath

from dresnet_jax import defaults
from dresnet_jax.comparison import budgets
from dresnet_jax.comparison.budgets import Costs, Together
from dresnet_jax.costs import cost
from dresnet_jax.errors import UserError, pick, unknown
from dresnet_jax.training import experiment, json_files, metrics, run_config
from dresnet_jax.training.experiment import Experiment

# Seeds of a variant that are tried in one program, if there are as many.
_MOST_TOGETHER = 8

BUDGETS = ("parameters", "flops", "time")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
      variants: the config of a run by the variant's name, except its seed.
      references: names of the reference and its forms with the main variant's budgets,
        by the budget: steps, parameters, flops, time.
      costs: of a step of each variant.
      machine: where they were measured.
      together: how many seeds of a variant one program trains.
    """

    variants: Mapping[str, ml_collections.ConfigDict]
    references: Mapping[str, str]
    costs: Mapping[str, Costs]
    machine: str
    together: Together


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the grid.

    Attributes:
      variant: its name.
      seed: of the run.
      directory: its run directory.
      experiment: what is trained; runs of one variant share its programs.
    """

    variant: str
    seed: int
    directory: epath.Path
    experiment: Experiment

    @property
    def is_done(self) -> bool:
        """Whether it has ended, well or not."""
        return any((self.directory / name).exists() for name in (DONE, FAILED))

    @functools.cached_property
    def report(self) -> dict[str, Any]:
        """Its report.json, once it has ended well."""
        return json.loads((self.directory / DONE).read_text())

    @functools.cached_property
    def lines(self) -> list[dict[str, Any]]:
        """Its metrics.jsonl."""
        return metrics.read(self.directory)


# In a run directory, once it has ended well, or not; and in the comparison's.
DONE, FAILED, _PLAN = "report.json", "failed.json", "plan.json"


def plan(config: ml_collections.ConfigDict, directory: epath.Path) -> Plan:
    """Checks a comparison, and adds what has equal budgets.

    What depends on measured times is read from the directory, if it was written there
    before. configs/compare/common.py explains the fields of `config`.

    Raises:
      UserError: a value is wrong.
    """
    for field in ("seeds", "other_seeds", "at_once", "together"):
        if config[field] is not None and config[field] < 1:
            raise UserError(f"{field} = {config[field]} must be above 0.")
    if not 0 <= config.first_seed <= 2**32 - config.seeds:
        raise UserError(
            f"first_seed = {config.first_seed} must be from 0 to 2**32 - seeds."
        )
    variants = {
        name: _changed(config.base, changes, f"variants.{name}")
        for name, changes in config.variants.items()
    }
    for field in ("reference", "main"):
        pick(f"variant, as {field},", config[field], variants)
    if config.reference == config.main:
        raise UserError(
            f"reference = main = {config.main}: there is nothing to compare."
        )
    for variant in variants.values():
        experiment.build(variant)
    result = directory / _PLAN
    if result.exists():
        return _read_plan(variants, json.loads(result.read_text()))
    return _new_plan(config, variants)


def _new_plan(
    config: ml_collections.ConfigDict, variants: dict[str, ml_collections.ConfigDict]
) -> Plan:
    reference, main = variants[config.reference], variants[config.main]
    references = {"steps": config.reference}
    for budget in config.budgets:
        pick("budget", budget, dict.fromkeys(BUDGETS))
        references[budget] = f"{config.reference}, equal {budget}"
    counts = {"parameters": budgets.count_params, "flops": budgets.count_flops}
    matched = {
        references[budget]: budgets.widened(reference, count(main), count)
        for budget, count in counts.items()
        if budget in references
    }
    costs = budgets.measure(variants | matched)
    if "time" in references:
        name = references["time"]
        ratio = costs[config.main].step_seconds / costs[config.reference].step_seconds
        num_steps = round(experiment.build(reference).num_steps * ratio)
        matched[name] = defaults.replace(reference, {"train.num_steps": num_steps})
        costs[name] = costs[config.reference]
    if config.together is None:
        seeds = min(config.seeds, config.other_seeds or config.seeds, _MOST_TOGETHER)
        together = budgets.measure_together(main, seeds)
    else:
        together = Together(config.together)
    return Plan(variants | matched, references, costs, cost.machine(), together)


def write_plan(plan: Plan, directory: epath.Path) -> None:
    """Keeps what was measured, so that a comparison continues with the same runs."""
    json_files.write_json(
        directory / _PLAN,
        {
            "references": dict(plan.references),
            "matched": {
                name: {
                    "width": variant.model.width,
                    "num_steps": variant.train.num_steps,
                }
                for name, variant in plan.variants.items()
                if name in plan.references.values()
            },
            "costs": {
                name: dataclasses.asdict(one) for name, one in plan.costs.items()
            },
            "machine": plan.machine,
            "together": dataclasses.asdict(plan.together),
        },
    )


def _read_plan(
    variants: dict[str, ml_collections.ConfigDict], result: dict[str, Any]
) -> Plan:
    for name, fields in result["matched"].items():
        variants[name] = defaults.replace(
            variants[result["references"]["steps"]],
            {"model.width": fields["width"], "train.num_steps": fields["num_steps"]},
        )
    costs = {name: Costs(**cost) for name, cost in result["costs"].items()}
    together = Together(**result["together"])
    return Plan(variants, result["references"], costs, result["machine"], together)


def runs(
    config: ml_collections.ConfigDict, plan: Plan, directory: epath.Path
) -> list[Run]:
    """Returns all runs, every variant of one seed before the next seed.

    Raises:
      UserError: the directory of one holds a run of another config.
    """
    compared = {config.main, *plan.references.values()}
    others = config.other_seeds or config.seeds
    seeds = {
        name: config.seeds if name in compared else others for name in plan.variants
    }
    experiments = {
        name: experiment.build(config) for name, config in plan.variants.items()
    }
    places = {
        name: directory / "runs" / own
        for name, own in _directories(plan.variants).items()
    }
    first = config.first_seed
    result = [
        Run(name, seed, places[name] / str(seed), experiments[name].with_seed(seed))
        for seed in range(first, first + max(seeds.values()))
        for name in plan.variants
        if seed < first + seeds[name]
    ]
    for run in result:
        if run.is_done:
            run_config.require_config(run.directory, run.experiment.config)
    return result


def read(result: list[Run]) -> tuple[list[Run], dict[str, str]]:
    """Returns the runs that ended well, and why the others did not, by directory."""
    finished, failed = [], {}
    for run in result:
        failure = run.directory / FAILED
        if failure.exists():
            failed[str(run.directory)] = json.loads(failure.read_text())["error"]
        else:
            finished.append(run)
    return finished, failed


def _directories(variants: Iterable[str]) -> dict[str, str]:
    """Returns the name of each variant's directory, which no other variant has."""
    result: dict[str, str] = {}
    for name in variants:
        slug = re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")
        if not slug.strip("."):
            slug = "variant"
        numbered = (f"{slug}_{number}" for number in itertools.count(2))
        names = itertools.chain([slug], numbered)
        result[name] = next(x for x in names if x not in result.values())
    return result


def _changed(
    base: ml_collections.ConfigDict, changes: ml_collections.ConfigDict, where: str
) -> ml_collections.ConfigDict:
    """The base with some fields changed.

    Raises:
      UserError: a field does not exist, or has another type.
    """
    config = copy.deepcopy(base).unlock()
    for path, value in defaults.fields(changes):
        node: Any = config
        for name in path.split("."):
            if not isinstance(node, ml_collections.ConfigDict):
                raise UserError(f"{where}.{path}: there is no group of this name.")
            if name not in node:
                raise unknown(f"field in {where}", name, list(node))
            group, node = node, node[name]
        try:
            group[name] = value
        except TypeError as error:
            raise UserError(f"{where}.{path} = {value!r}: {error}") from error
    return config.lock()
