"""A grid of runs: variants of one config, several seeds of each, equal budgets."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from dresnet_jax.analysis import budgets
from dresnet_jax.analysis.budgets import Costs, Together
from dresnet_jax.errors import RunFailedError, UserError, pick, unknown
from dresnet_jax.training import experiment, late_report, loop, metrics, workdir
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.together import Group, Member

# Processes that `trainers` starts by itself; each takes about a gigabyte.
_MOST_AT_ONCE = 8

# Seeds of a variant that are tried in one program, if there are as many.
_MOST_TOGETHER = 8

BUDGETS = ("parameters", "flops", "time")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
      variants: the config of a run by the variant's name, but for its seed.
      references: names of the reference and its forms with the main variant's budgets,
        by the budget: steps, parameters, flops, time.
      costs: of a step of each variant.
      together: how many seeds of a variant one program trains.
    """

    variants: Mapping[str, ml_collections.ConfigDict]
    references: Mapping[str, str]
    costs: Mapping[str, Costs]
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
        return any((self.directory / name).exists() for name in (_DONE, _FAILED))


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that has ended well.

    Attributes:
      variant: its name.
      seed: of the run.
      report: its report.json.
      lines: its metrics.jsonl.
    """

    variant: str
    seed: int
    report: dict[str, Any]
    lines: list[dict[str, Any]]


# Trains groups of runs, and yields each as it ends, with the seconds that it took.
Trainer = Callable[[Iterable[list[Run]]], Iterator[tuple[list[Run], float]]]

_DONE, _FAILED, _PLAN = "report.json", "failed.json", "plan.json"


def plan(config: ml_collections.ConfigDict, directory: epath.Path) -> Plan:
    """Checks a comparison, and adds what has equal budgets.

    What depends on measured times is read from the directory, if it was written there
    before.

    Args:
      config: of the comparison; its fields are explained in configs/compare/common.py.
      directory: of the comparison.

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
    found = directory / _PLAN
    if found.exists():
        return _read_plan(variants, json.loads(found.read_text()))
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
        longer = copy.deepcopy(reference)
        ratio = costs[config.main].step_seconds / costs[config.reference].step_seconds
        longer.train.num_steps = round(experiment.build(reference).num_steps * ratio)
        matched[name] = longer
        costs[name] = costs[config.reference]
    return Plan(variants | matched, references, costs, _together(config, main))


def _together(
    config: ml_collections.ConfigDict, main: ml_collections.ConfigDict
) -> Together:
    if config.together is not None:
        return Together(config.together)
    fewest = min(config.seeds, config.other_seeds or config.seeds)
    return budgets.measure_together(main, min(fewest, _MOST_TOGETHER))


def write_plan(plan: Plan, directory: epath.Path) -> None:
    """Keeps what was measured, so that a comparison goes on with the same runs."""
    workdir.write_json(
        directory / _PLAN,
        {
            "references": dict(plan.references),
            "matched": {
                name: {
                    "width": config.model.width,
                    "num_steps": config.train.num_steps,
                }
                for name, config in plan.variants.items()
                if name in plan.references.values()
            },
            "costs": {
                name: dataclasses.asdict(cost) for name, cost in plan.costs.items()
            },
            "together": dataclasses.asdict(plan.together),
        },
    )


def _read_plan(
    variants: dict[str, ml_collections.ConfigDict], found: dict[str, Any]
) -> Plan:
    for name, fields in found["matched"].items():
        changed = copy.deepcopy(variants[found["references"]["steps"]])
        changed.model.width = fields["width"]
        changed.train.num_steps = fields["num_steps"]
        variants[name] = changed
    costs = {name: Costs(**cost) for name, cost in found["costs"].items()}
    together = Together(**found["together"])
    return Plan(variants, found["references"], costs, together)


def runs(
    config: ml_collections.ConfigDict, plan: Plan, directory: epath.Path
) -> list[Run]:
    """All runs, every variant of one seed before the next seed."""
    compared = {config.main, *plan.references.values()}
    others = config.seeds if config.other_seeds is None else config.other_seeds
    seeds = {
        name: config.seeds if name in compared else others for name in plan.variants
    }
    parts = {name: experiment.build(config) for name, config in plan.variants.items()}
    return [
        Run(
            name,
            config.first_seed + i,
            directory / "runs" / _slug(name) / str(config.first_seed + i),
            parts[name].with_seed(config.first_seed + i),
        )
        for i in range(max(seeds.values()))
        for name in plan.variants
        if i < seeds[name]
    ]


def grouped(runs: Iterable[Run], together: int) -> list[list[Run]]:
    """The runs that one program trains together: so many seeds of a variant."""
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.seed // together, run.variant), []).append(run)
    return list(groups.values())


def train(group: Sequence[Run], together: int) -> None:
    """Trains runs to their end, or goes on with them; what they print goes to log.txt.

    A run whose loss is not finite has failed, and is not tried again.

    Args:
      group: one of `grouped`.
      together: seeds that the program has room for; with 1 it is that of `train`.
    """
    with contextlib.ExitStack() as stack:
        members = {}
        for run in group:
            config, directory = run.experiment.config, run.directory
            stack.enter_context(workdir.claim(directory, config, overwrite=False))
            log = stack.enter_context((directory / "log.txt").open("a"))
            member = Member(run.experiment, directory, log)
            members[run.seed % together] = member
        for slot, error in _trained(members, together).items():
            directory = members[slot].directory
            workdir.write_json(directory / _FAILED, {"error": str(error)})


def _trained(members: dict[int, Member], together: int) -> Mapping[int, Exception]:
    """Trains; returns by slot why a run failed."""
    if together > 1:
        return Group(members, together).train()
    (member,) = members.values()
    with contextlib.redirect_stdout(member.output):
        try:
            loop.run(member.experiment, member.directory)
        except late_report.NonFiniteLossError as error:
            return {0: error}
    return {}


@contextlib.contextmanager
def trainers(at_once: int | None, together: int, cache: str) -> Iterator[Trainer]:
    """What trains groups of runs, so many at once.

    On a CPU small steps leave cores idle, so that runs side by side end sooner than one
    after the other.

    Args:
      at_once: how many groups, each in a process of its own; 1 for this process; None
        for one a core on a CPU, at most `_MOST_AT_ONCE`, and else 1.
      together: seeds of a group's program.
      cache: directory of compiled programs.
    """
    if at_once is None:
        cores = len(os.sched_getaffinity(0))
        at_once = min(cores, _MOST_AT_ONCE) if jax.default_backend() == "cpu" else 1
    if at_once == 1:
        yield lambda groups: ((group, _timed(group, together)) for group in groups)
        return
    with concurrent.futures.ProcessPoolExecutor(
        at_once,
        # A fork of a process with JAX's threads would hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(cache,),
    ) as pool:
        yield functools.partial(_train_in, pool, at_once, together)


def _train_in(
    pool: concurrent.futures.Executor,
    at_once: int,
    together: int,
    groups: Iterable[list[Run]],
) -> Iterator[tuple[list[Run], float]]:
    waiting = iter(groups)
    under_way: dict[concurrent.futures.Future[float], list[Run]] = {}
    while True:
        # No more than can start, so that nothing does after Ctrl-C.
        for group in itertools.islice(waiting, at_once - len(under_way)):
            places = {run.seed: str(run.directory) for run in group}
            config, variant = group[0].experiment.config, group[0].variant
            task = pool.submit(_train_there, config, variant, places, together)
            under_way[task] = group
        if not under_way:
            return
        ended, _ = concurrent.futures.wait(
            under_way, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for task in ended:
            group = under_way.pop(task)
            try:
                yield group, task.result()
            except concurrent.futures.process.BrokenProcessPool as error:
                raise RunFailedError(
                    f"The process that trained {group[0].directory} was killed; the "
                    "same command goes on. A lower at_once needs less memory."
                ) from error


def _start_worker(cache: str) -> None:
    """Prepares a process that trains; it ends with the one that started it."""
    jax.config.update("jax_compilation_cache_dir", cache)
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was started by another"

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _train_there(
    config: ml_collections.ConfigDict,
    variant: str,
    places: Mapping[int, str],
    together: int,
) -> float:
    """Trains a group in a worker, which keeps the programs of every variant."""
    if variant not in _EXPERIMENTS:
        _EXPERIMENTS[variant] = experiment.build(config)
    parts = _EXPERIMENTS[variant]
    group = [
        Run(variant, seed, epath.Path(directory), parts.with_seed(seed))
        for seed, directory in places.items()
    ]
    return _timed(group, together)


# Of a worker, by variant.
_EXPERIMENTS: dict[str, Experiment] = {}


def _timed(group: Sequence[Run], together: int) -> float:
    start = time.monotonic()
    train(group, together)
    return time.monotonic() - start


def read(found: list[Run]) -> tuple[list[Finished], dict[str, str]]:
    """The runs that ended well, and why each of the others did not, by directory."""
    finished, failed = [], {}
    for run in found:
        failure = run.directory / _FAILED
        if failure.exists():
            failed[str(run.directory)] = json.loads(failure.read_text())["error"]
            continue
        report = json.loads((run.directory / _DONE).read_text())
        lines = metrics.read(run.directory)
        finished.append(Finished(run.variant, run.seed, report, lines))
    return finished, failed


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


def _changed(
    base: ml_collections.ConfigDict, changes: ml_collections.ConfigDict, where: str
) -> ml_collections.ConfigDict:
    """The base with some fields changed.

    Raises:
      UserError: a field does not exist, or has another type.
    """
    config = copy.deepcopy(base).unlock()
    for path, value in _fields(changes):
        *groups, field = path
        node = config
        for group in groups:
            if group not in node:
                raise unknown(f"field in {where}", group, list(node))
            node = node[group]
        if field not in node:
            raise unknown(f"field in {where}", field, list(node))
        try:
            node[field] = value
        except TypeError as error:
            name = ".".join(path)
            raise UserError(f"{where}.{name} = {value!r}: {error}") from error
    return config.lock()


def _fields(
    tree: ml_collections.ConfigDict, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _fields(value, (*path, name))
        else:
            yield (*path, name), value
