"""Evolution finds the front of a small space, and beats chance in a large one."""

import itertools

import numpy as np
import pytest
from scipy import stats

from configs import digits
from dresnet_jax.structure.evolution import evolution, population, space

SEEDS, MEMBERS = 10, 8


class Space:
    """Which connections this many blocks have; each structure is trained once."""

    def __init__(self, blocks, steps):
        config = digits.get_config()
        config.data.batch_size = 64
        config.model.width, config.model.blocks_per_stage = 4, (blocks,)
        config.train.num_steps = steps
        config.evolution.min_blocks, config.evolution.widths = (blocks,), (1.0,)
        config.evolution.inherit = False
        self.space = space.of_config(config)
        self.table = population.Population(config, None)

    def searched(self, algorithm, evaluations, seed):
        return evolution.search(
            self.space,
            self.table,
            algorithm=algorithm,
            population=MEMBERS,
            evaluations=evaluations,
            seed=seed,
        )


def front(result):
    return {one.structure for one in evolution.front(result)}


@pytest.mark.slow
def test_the_front_of_a_small_space_is_found():
    small = Space(5, 150)
    genes = itertools.product(*(range(n + 1) for n in small.space.limits))
    every = sorted({small.space.structure(one) for one in genes}, key=repr)
    assert len(every) == 64
    true = front(small.table(every, []))
    print(f"\n{len(every)} structures, {len(true)} of them on the front")
    shares = {
        (algorithm, evaluations): [
            len(front(small.searched(algorithm, evaluations, seed)) & true) / len(true)
            for seed in range(SEEDS)
        ]
        for algorithm in ("nsga2", "random")
        for evaluations in (32, 40, 48, 56, 64)
    }
    for (algorithm, evaluations), of_seeds in shares.items():
        print(
            f"{evaluations} evaluations by {algorithm} find of it "
            f"{np.mean(of_seeds):.2f}: {np.round(of_seeds, 2)}"
        )
    test = stats.ttest_ind(shares["nsga2", 48], shares["random", 48], equal_var=False)
    print(f"after 48 evaluations: p = {test.pvalue:.2g}")
    assert set(shares["nsga2", 64]) == {1}
    assert np.mean(shares["nsga2", 56]) >= 0.9
    assert np.mean(shares["nsga2", 48]) > np.mean(shares["random", 48])
    assert test.pvalue < 0.05


@pytest.mark.slow
def test_evolution_dominates_more_than_chance():
    large, evaluations = Space(8, 30), 40
    result = {
        name: [large.searched(name, evaluations, seed) for seed in range(SEEDS)]
        for name in ("nsga2", "random")
    }
    span = evolution.span(itertools.chain(*result["nsga2"], *result["random"]))
    volumes = {
        name: [evolution.hypervolumes(one, span)[-1] for one in runs]
        for name, runs in result.items()
    }
    for name, values in volumes.items():
        each = " ".join(f"{value:.4f}" for value in values)
        print(f"\n{name}: mean hypervolume {np.mean(values):.4f}: {each}")
    test = stats.ttest_ind(volumes["nsga2"], volumes["random"], equal_var=False)
    print(
        f"\n{large.space.size} structures, {evaluations} evaluations, {SEEDS} seeds: "
        f"p = {test.pvalue:.2g}"
    )
    assert {len(one) for runs in result.values() for one in runs} == {evaluations}
    assert np.mean(volumes["nsga2"]) > np.mean(volumes["random"])
    assert test.pvalue < 0.05
