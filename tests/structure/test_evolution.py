"""Structures, and the search among them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from hypothesis import given, strategies

from dresnet_jax.errors import UserError
from dresnet_jax.structure import changes
from dresnet_jax.structure.evolution import evolution, population, space
from dresnet_jax.structure.evolution.evolution import Found
from dresnet_jax.structure.evolution.space import Space, Structure
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import evaluation, experiment
from tests.conftest import run_command

SLOTS = ((0, 0), (0, 1), (0, 2), (1, 0))
SPACE = Space(
    blocks=("basic", "separable"),
    fewest=(1, 1),
    depths=(3, 1),
    hidden={"basic": ((8, 16),) * 3 + ((16, 32),), "separable": ()},
    widths=2,
    pairs=(((0, 2), (0, 0)), ((1, 0), (0, 0)), ((1, 0), (0, 1))),
)
GENES = strategies.tuples(*(strategies.integers(0, int(n)) for n in SPACE.limits))


@given(GENES)
def test_a_structure_s_genes_are_of_that_structure(genes):
    structure = SPACE.structure(genes)
    own = SPACE.genes(structure)
    assert SPACE.structure(own) == structure
    np.testing.assert_array_equal(SPACE.genes(SPACE.structure(own)), own)
    assert all(i - k > 1 for i, k in structure.edges)
    assert len(structure.hidden) in (0, sum(structure.blocks_per_stage))


@given(GENES, GENES)
def test_what_is_within_has_no_more_of_anything(one, other):
    one, other = SPACE.structure(one), SPACE.structure(other)
    assert one.is_within(one)
    if one.is_within(other):
        assert len(one.edges) <= len(other.edges)
        assert sum(one.hidden) <= sum(other.hidden)
        pairs = zip(one.blocks_per_stage, other.blocks_per_stage, strict=True)
        assert all(a <= b for a, b in pairs)
        assert one == other or not other.is_within(one)


def made_up(structures, before):
    """Figures that a program need not train for: small errors cost much."""
    del before
    return [
        Found(
            one,
            error=1 / (1 + len(one.edges) + sum(one.blocks_per_stage)),
            multiply_adds=sum(one.hidden) + len(one.edges),
            params=sum(one.hidden) + 7 * len(one.blocks_per_stage),
            unsteadiness=0.1 * (one.block == "basic"),
        )
        for one in structures
    ]


def searched(evaluate, algorithm="nsga2", evaluations=24, seed=0):
    return evolution.search(
        SPACE,
        evaluate,
        algorithm=algorithm,
        population=6,
        evaluations=evaluations,
        seed=seed,
    )


@pytest.mark.parametrize("algorithm", sorted(evolution.ALGORITHMS))
def test_a_search_is_a_function_of_its_seed(algorithm):
    one, same = (searched(made_up, algorithm) for _ in range(2))
    assert one == same
    assert len({result.structure for result in one}) == len(one) == 24
    assert searched(made_up, algorithm, seed=1) != one
    # One that is stopped and continues asks for the same.
    assert searched(made_up, algorithm, evaluations=12) == one[:12]


@pytest.mark.parametrize("algorithm", sorted(evolution.ALGORITHMS))
@pytest.mark.parametrize(("pairs", "size"), [((), 3), (SPACE.pairs, 1 + 2 + 8)])
def test_a_search_ends_where_a_space_does(algorithm, pairs, size):
    small = dataclasses.replace(SPACE, blocks=("separable",), widths=1, pairs=pairs)
    result = evolution.search(
        small, made_up, algorithm=algorithm, population=4, evaluations=99, seed=0
    )
    assert len(result) == size


def test_a_width_is_that_of_all_blocks_of_a_stage():
    hidden = ((8, 8), (8, 16), (8, 16), (16, 16))
    odd = dataclasses.replace(SPACE, blocks=("basic",), hidden={"basic": hidden})
    for genes in ([0, 2, 0, 1, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0, 0, 0]):
        structure = odd.structure(genes)
        assert odd.structure(odd.genes(structure)) == structure


def test_the_front_is_what_nothing_dominates():
    result = searched(made_up)
    front = evolution.front(result)
    for one in result:
        values = np.asarray(one.objectives)
        dominated = any(
            (np.asarray(other.objectives) <= values).all()
            and (np.asarray(other.objectives) < values).any()
            for other in result
        )
        assert (one in front) is not dominated


def test_the_hypervolume_is_that_of_boxes():
    one = Found(SPACE.structure(np.zeros(8, int)), 0.5, 5, 5, 0.5)
    other = dataclasses.replace(one, error=0.25, multiply_adds=8)
    # From 0 to these; a tenth more is the reference.
    span = [0.0] * 4, np.asarray([1, 10, 10, 1]) / 1.1
    volumes = evolution.hypervolumes([one, other], span)
    rest = 0.5 * 0.5
    np.testing.assert_allclose(
        volumes, [0.5 * 0.5 * rest, (0.25 + 0.75 * 0.2 - 0.1) * rest]
    )
    assert evolution.span([one, other])[1] == [0.5, 8, 5, 0.5]


@pytest.fixture
def config(small_config):
    """Blocks in two stages, each structure trained for six steps."""
    small_config.data.batch_size = 32
    small_config.model.width = 8
    small_config.model.blocks_per_stage = (3, 1)
    small_config.model.connections.projection = "per_edge"
    small_config.train.num_steps = 6
    evolved = small_config.evolution
    evolved.population, evolved.evaluations, evolved.widths = 2, 4, (1.0, 2.0)
    return small_config


LARGE = Structure("basic", (3, 1), (8, 16, 8, 16), ((3, 1), (4, 2)))
SMALL = Structure("basic", (2, 1), (8, 8, 16), ())


@pytest.mark.slow
def test_left_out_connections_are_as_if_they_were_not_there(config):
    """What is trained with a mask answers as the network without them."""
    config.train.ema_decay = 0.5
    shape = population._Shape(config, LARGE)
    data = shape.experiment.open_data()
    (state,), losses = shape.train((shape.experiment.create_state(),), [LARGE], data)
    exp = experiment.build(LARGE.config(config))
    alone = shape.alone(state, LARGE, exp)
    whole = Network(shape.experiment, state)
    batch = evaluation.first_batch(exp)
    assert changes.difference(whole, Network(exp, alone), batch) <= 1e-5
    one, other = (
        Network(exp, state.replace(params=state.eval_params))
        for exp, state in ((shape.experiment, state), (exp, alone))
    )
    assert changes.difference(one, other, batch) <= 1e-5
    assert losses.shape == (1, 6)
    # What learns is what the network alone would have learnt.
    fresh = shape.experiment.create_state()
    start = shape.alone(fresh, LARGE, exp)
    program = exp.compile_train_step()
    for inputs, _ in exp.inputs.data(data, config.seed, exp.calls(0)):
        start, result = program(start, inputs)
    np.testing.assert_allclose(result.loss[0], losses[0, -1], 1e-4)


@pytest.mark.slow
def test_structures_trained_in_one_program_are_as_alone(config):
    other = dataclasses.replace(LARGE, edges=((4, 1),))
    result = {}
    for together in (1, 2):
        config.evolution.together = together
        config.evolution.inherit = False
        result[together] = population.Population(config, None)([LARGE, other], [])
    for one, same in zip(*result.values(), strict=True):
        assert (one.structure, one.params) == (same.structure, same.params)
        np.testing.assert_allclose(one.error, same.error, atol=0.02)
        np.testing.assert_allclose(one.unsteadiness, same.unsteadiness, rtol=0.05)


@pytest.mark.slow
def test_a_structure_begins_with_the_weights_of_what_it_has_all_of(config, tmp_path):
    directory = epath.Path(tmp_path)
    trained = population.Population(config, directory)
    (small,) = trained([SMALL], [])
    shape = population._Shape(config, LARGE)
    now = trained._grown(SMALL, LARGE, shape.edges)
    there, restored = evaluation.open_run(trained.member(SMALL))
    batch = evaluation.first_batch(there)
    parent = Network(there, restored.state)
    assert changes.difference(parent, now, batch) <= 1e-5
    assert now.experiment.model.spec.hidden == LARGE.hidden
    lifted = Network(shape.experiment, shape.started(now))
    mask = shape._mask(LARGE)
    masked = lifted.state.replace(params=population._masked(mask, lifted.state.params))
    lifted = Network(shape.experiment, masked)
    assert changes.difference(parent, lifted, batch) <= 1e-5
    (large,) = trained([LARGE], [small])
    assert (small.parent, large.parent) == (None, 0)
    # Another process finds what this one wrote.
    again = population.Population(config, directory)
    assert again.num_known == 2
    assert again([SMALL, LARGE], []) == [small, large]


def asked_for(config):
    evolution.check(config)
    return space.of_config(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"algorithm": "nsga3"}, "nsga3.*nsga2"),
        ({"population": 1}, "population = 1 must be in"),
        ({"population": 200}, "population = 200"),
        ({"together": 0}, "together = 0"),
        ({"blocks": ("basik",)}, "basik.*basic"),
        ({"widths": ()}, r"widths = \(\) must be numbers"),
        ({"widths": (0.0,)}, "widths"),
        ({"max_blocks": (2,)}, "max_blocks = .* 2 numbers"),
        ({"min_blocks": (4, 1)}, "min_blocks = .* below the fewest"),
    ],
)
def test_wrong_values_are_named(config, fields, message):
    config.evolution.update(fields)
    with pytest.raises(UserError, match=message):
        asked_for(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.model.update(name="resnet18"), "dresnet18 has"),
        (lambda c: c.model.connections.update(projection="none"), "projection"),
        (lambda c: c.model.connections.update(gate="softmax"), "softmax"),
        (lambda c: c.model.connections.update(weights="by_distance"), "weights"),
        (lambda c: c.growth.update(events=("width",)), "growth.events"),
        (lambda c: c.init.update(workdir="runs/x"), "init.workdir"),
        (lambda c: c.evolution.update(against_random=True), "inherit = False"),
        (lambda c: c.train.update(num_steps=2), "num_steps = 2"),
        (lambda c: c.search.update(share=0.5), "search.share"),
        (lambda c: c.model.update(hidden=(8, 8, 8, 8)), "model.hidden"),
    ],
)
def test_what_cannot_be_evolved_is_refused(config, change, message):
    with config.ignore_type():
        change(config)
    with pytest.raises(UserError, match=message):
        asked_for(config)


def test_a_stopped_search_resumes(tmp_path):
    directory = tmp_path / "evolved"
    given_flags = [
        "--config=configs/digits.py",
        f"--workdir={directory}",
        "--config.model.width=8",
        "--config.model.blocks_per_stage=(1,)",
        "--config.train.num_steps=6",
        "--config.evolution.widths=(1.0, 2.0, 3.0)",
        "--config.evolution.population=2",
        "--config.evolution.evaluations=3",
        "--config.evolution.inherit=False",
        "--json",
    ]
    code, output, errors = run_command("evolve", *given_flags)
    assert code == 0, errors
    first = json.loads(output.splitlines()[-1])
    assert first["space"] == 3
    assert len(first["hypervolume"]["nsga2"]) == 3
    assert (directory / "evolution.png").stat().st_size > 10_000
    best = first["front"][0]["workdir"]
    code, output, errors = run_command("evaluate", f"--workdir={best}", "--json")
    assert code == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert jax.tree.leaves(result)
    lines = (directory / "evaluations.jsonl").read_text().splitlines()
    (directory / "evaluations.jsonl").write_text("\n".join(lines[:1]) + "\n")
    code, output, errors = run_command("evolve", *given_flags)
    assert code == 0, errors
    assert "1 structures were trained before" in output
    assert json.loads(output.splitlines()[-1]) == first
    code, _, errors = run_command("evolve", *given_flags[:2], "--config.evolution.a=1")
    assert code == 2
    assert "evolution" in errors
    fewer = [*given_flags, "--config.evolution.evaluations=2"]
    code, _, errors = run_command("evolve", *fewer)
    assert code == 2
    assert "start from scratch with --overwrite" in errors
    code, output, errors = run_command("evolve", *fewer, "--overwrite")
    assert code == 0, errors
    assert "were trained before" not in output
    assert len(json.loads(output.splitlines()[-1])["hypervolume"]["nsga2"]) == 2


@pytest.mark.slow
def test_what_cannot_grow_begins_from_scratch(config, tmp_path):
    config.model.norm, config.evolution.edges = "layer", False
    trained = population.Population(config, epath.Path(tmp_path))
    (small,) = trained([SMALL], [])
    wider = dataclasses.replace(SMALL, hidden=(16, 8, 16))
    (result,) = trained([wider], [small])
    assert result.parent is None
