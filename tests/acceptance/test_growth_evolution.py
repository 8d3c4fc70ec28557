"""Evolution finds the front of a small space, and beats chance in a large one."""

import itertools

import numpy as np
import pytest
from scipy import stats

from configs import digits
from dresnet_jax.structure import evolution, population, space

SEEDS, EVALUATIONS, MEMBERS = 10, 40, 8


def config_of(blocks, widths):
    """A stage of at most so many blocks, each structure trained for 30 steps."""
    config = digits.get_config()
    config.data.batch_size = 64
    config.model.width, config.model.blocks_per_stage = 16, (blocks,)
    config.train.num_steps = 30
    config.evolution.widths = widths
    config.evolution.inherit = False
    return config


def table_of(config):
    """Trains each structure once, whoever asks for it."""
    return population.Population(config, None)


@pytest.mark.slow
def test_the_front_of_a_small_space_is_found():
    config = config_of(4, (0.5, 1.0))
    there, table = space.of_config(config), table_of(config)
    every = {
        there.structure(genes)
        for genes in itertools.product(*(range(n + 1) for n in there.limits))
    }
    true = {
        one.structure for one in evolution.front(table(sorted(every, key=repr), []))
    }
    found = evolution.search(
        there, table, algorithm="nsga2", population=8, evaluations=len(every), seed=0
    )
    front = {one.structure for one in evolution.front(found)}
    print(
        f"\n{len(every)} structures, {len(true)} on the front; after {len(found)} "
        f"evaluations {len(front & true)} of them are found and {len(front - true)} "
        "others"
    )
    assert len(every) == 24
    assert front == true


@pytest.mark.slow
def test_evolution_dominates_more_than_chance():
    config = config_of(8, (0.5,))
    there, table = space.of_config(config), table_of(config)
    found = {
        name: [
            evolution.search(
                there,
                table,
                algorithm=name,
                population=MEMBERS,
                evaluations=EVALUATIONS,
                seed=seed,
            )
            for seed in range(SEEDS)
        ]
        for name in ("nsga2", "random")
    }
    worst = evolution.worst(list(itertools.chain(*found["nsga2"], *found["random"])))
    volumes = {
        name: [evolution.hypervolumes(of_seed, worst)[-1] for of_seed in runs]
        for name, runs in found.items()
    }
    for name, values in volumes.items():
        print(
            f"\n{name}: {np.mean(values):.4f}, " + " ".join(f"{v:.4f}" for v in values)
        )
    test = stats.ttest_ind(volumes["nsga2"], volumes["random"], equal_var=False)
    print(
        f"\n{there.size} vectors of genes, {EVALUATIONS} evaluations, {SEEDS} seeds: "
        f"p = {test.pvalue:.2g}"
    )
    assert {len(run) for runs in found.values() for run in runs} == {EVALUATIONS}
    assert np.mean(volumes["nsga2"]) > np.mean(volumes["random"])
    assert test.pvalue < 0.05
