"""Structures found by evolution, NSGA-II (Deb et al. 2002), or by chance.

The search is a function of its seed and of the values it is given: with a table of
those that are known already, it resumes where it was stopped.
"""

import dataclasses
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling
from pymoo.indicators.hv import HV
from pymoo.operators.crossover.ux import UX
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from dresnet_jax.errors import UserError, pick
from dresnet_jax.structure.evolution.space import Space, Structure

# All are to be small.
OBJECTIVES = ("error", "multiply_adds", "params", "unsteadiness")
# Generations without a structure that is new, after which there is taken to be none.
_IN_VAIN = 100


@dataclasses.dataclass(frozen=True)
class Found:
    """A structure that was trained, and what came of it.

    Attributes:
      structure: itself.
      error: share of the validation examples that are wrongly classified.
      multiply_adds: of one image as evaluated.
      params: parameters.
      unsteadiness: standard deviation of the change of the training loss from step to
        step, in the second half of training.
      parent: number of the member whose weights it began with; None where it began
        again.
    """

    structure: Structure
    error: float
    multiply_adds: int
    params: int
    unsteadiness: float
    parent: int | None = None

    @property
    def objectives(self) -> tuple[float, ...]:
        """Its figures, in the order of `OBJECTIVES`."""
        return tuple(float(getattr(self, name)) for name in OBJECTIVES)


# From structures that are new, and those found before them, to what came of each.
Evaluate = Callable[[Sequence[Structure], Sequence[Found]], Sequence[Found]]


def check(config: ml_collections.ConfigDict) -> None:
    """Checks the numbers of `config.evolution`.

    Raises:
      UserError: one is wrong.
    """
    asked = config.evolution
    pick("evolution.algorithm", asked.algorithm, ALGORITHMS)
    if config.growth.events or config.search.share:
        raise UserError(
            "evolution trains each structure as it is: leave growth.events = () and "
            "search.share = 0."
        )
    if config.init.workdir:
        raise UserError(
            f"init.workdir = {config.init.workdir}: evolution starts from "
            "scratch; leave it ''."
        )
    if asked.against_random and asked.inherit:
        raise UserError(
            "evolution.against_random needs evolution.inherit = False: what is drawn "
            "would begin with weights that evolution has trained."
        )
    if asked.population > asked.evaluations:
        raise UserError(
            f"evolution.population = {asked.population} must not be above "
            f"evolution.evaluations = {asked.evaluations}."
        )


def search(
    space: Space,
    evaluate: Evaluate,
    *,
    algorithm: str,
    population: int,
    evaluations: int,
    seed: int,
) -> list[Found]:
    """Evaluates structures of a space, all of them different.

    Args:
      space: what they are of.
      evaluate: trains some at once.
      algorithm: a key of `ALGORITHMS`.
      population: how many live at a time, and are evaluated at once.
      evaluations: after this many the search ends, or where it finds no other ones.
      seed: of the search.

    Returns:
      What was found, in the order in which it was asked for.
    """
    result: dict[Structure, Found] = {}
    asking = ALGORITHMS[algorithm](space, population, seed)
    proposed, in_vain = next(asking), 0
    while proposed and in_vain < _IN_VAIN:
        new = [one for one in dict.fromkeys(proposed) if one not in result]
        new = new[: evaluations - len(result)]
        for one in evaluate(new, list(result.values())) if new else ():
            result[one.structure] = one
        if len(result) >= evaluations:
            break
        in_vain = 0 if new else in_vain + 1
        proposed = asking.send([result[one] for one in proposed])
    return list(result.values())


def front(result: Sequence[Found]) -> list[Found]:
    """Returns those that no other one dominates."""
    values = np.asarray([one.objectives for one in result])
    best = NonDominatedSorting().do(values, only_non_dominated_front=True)
    return [result[i] for i in sorted(best)]


def hypervolumes(
    result: Sequence[Found], span: tuple[Sequence[float], Sequence[float]]
) -> list[float]:
    """Computes the share of the objectives' space that is dominated, over time.

    Args:
      result: in the order of evaluation.
      span: the smallest and the largest of each objective. The space goes from the
        smallest to a tenth of the span beyond the largest, so that those count too.
    """
    low, high = map(np.asarray, span)
    values = np.asarray([one.objectives for one in result])
    shares = (values - low) / np.maximum(high - low, 1e-12) / 1.1
    indicator = HV(ref_point=np.ones(len(OBJECTIVES)))
    return [float(indicator(shares[:n])) for n in range(1, len(result) + 1)]


def span(result: Iterable[Found]) -> tuple[list[float], list[float]]:
    """Returns the smallest and the largest of each objective, of sound ones."""
    every = list(result)
    sound = [one for one in every if one.error < 1] or every
    values = np.asarray([one.objectives for one in sound])
    return values.min(axis=0).tolist(), values.max(axis=0).tolist()


def table(result: Sequence[Found], place: Callable[[Structure], Any]) -> str:
    """Returns a row per structure, with its run, those of the smallest error first."""
    lines = ["  error   mult-adds    params  unsteady  structure"]
    for one in sorted(result, key=lambda one: one.objectives):
        what = one.structure
        lines.append(
            f"{one.error:7.4f}{one.multiply_adds:12,d}{one.params:10,d}"
            f"{one.unsteadiness:10.4f}  {what.block} {what.blocks_per_stage}, inside "
            f"{what.hidden}, connections {what.edges}: {place(what)}"
        )
    return "\n".join(lines)


def draw(
    result: Mapping[str, Sequence[Found]],
    front: Sequence[Found],
    volumes: Mapping[str, Sequence[float]],
) -> Figure:
    """Draws error over cost of all structures, and the hypervolume over time.

    Args:
      result: by algorithm, in the order of evaluation.
      front: those of which none is better in everything.
      volumes: by algorithm, after each evaluation.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    costs = {"multiply_adds": "multiply-adds of an image", "params": "parameters"}
    for axis, (cost, label) in zip(axes, costs.items(), strict=False):
        for name, each in result.items():
            pairs = [(getattr(one, cost), one.error) for one in each]
            axis.plot(*zip(*pairs, strict=True), ".", alpha=0.6, label=name)
        pairs = [(getattr(one, cost), one.error) for one in front]
        axis.plot(
            *zip(*pairs, strict=True), "o", fillstyle="none", color="k", label="front"
        )
        axis.set(xlabel=label, ylabel="validation error")
    for name, volume in volumes.items():
        axes[2].plot(range(1, len(volume) + 1), volume, label=name)
    axes[2].set(xlabel="structures trained", ylabel="hypervolume, share of all")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle("Structures found; the front is of four objectives")
    return figure


class _Used(Repair):
    """Genes as whole numbers, 0 where the structure does not use them."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self._space = space

    def _do(self, problem: Any, x: np.ndarray, **options: Any) -> np.ndarray:
        del problem, options
        space = self._space
        result = np.clip(np.rint(x), 0, space.limits)
        return np.stack([space.genes(space.structure(row)) for row in result])


class _Drawn(Sampling):
    """The smallest and the largest structure, and others at random."""

    def _do(self, problem: Problem, n: int, **options: Any) -> np.ndarray:
        random, limits = options["random_state"], problem.xu.astype(int)
        drawn = random.integers(limits + 1, size=(n, problem.n_var))
        return np.stack([problem.xl, problem.xu, *drawn])[:n]


class _Redrawn(Mutation):
    """Draws some genes again, one of each child on average."""

    def _do(self, problem: Problem, x: np.ndarray, **options: Any) -> np.ndarray:
        random, limits = options["random_state"], problem.xu.astype(int)
        drawn = random.integers(limits + 1, size=x.shape)
        return np.where(random.random(x.shape) < 1 / x.shape[1], drawn, x)


# Yields the structures to evaluate next, and is sent what came of them.
Asking = Generator[list[Structure], list[Found], None]


def _nsga2(space: Space, population: int, seed: int) -> Asking:
    problem = Problem(
        n_var=len(space.limits),
        n_obj=len(OBJECTIVES),
        xl=np.zeros(len(space.limits)),
        xu=space.limits,
        vtype=int,
    )
    repair = _Used(space)
    algorithm = NSGA2(
        pop_size=population,
        sampling=_Drawn(),
        crossover=UX(repair=repair),
        mutation=_Redrawn(repair=repair),
        repair=repair,
    )
    # It continues for as long as it is asked.
    algorithm.setup(problem, termination=("n_gen", np.iinfo(np.int32).max), seed=seed)
    while (infills := algorithm.ask()) is not None and len(infills):
        evaluated = yield [space.structure(row) for row in infills.get("X")]
        infills.set("F", np.asarray([one.objectives for one in evaluated]))
        algorithm.tell(infills=infills)
    yield []


def _random(space: Space, population: int, seed: int) -> Asking:
    random = np.random.default_rng(seed)
    # As evolution begins.
    limits = space.limits
    proposed = [space.structure(genes) for genes in (0 * limits, limits)]
    seen = set(proposed)
    while True:
        # A space of few may have no other one.
        for _ in range(1000 * population):
            one = space.structure(random.integers(limits + 1))
            if one not in seen:
                seen.add(one)
                proposed.append(one)
            if len(proposed) >= population:
                break
        yield proposed
        proposed = []


ALGORITHMS: dict[str, Callable[[Space, int, int], Asking]] = {
    "nsga2": _nsga2,
    "random": _random,
}
