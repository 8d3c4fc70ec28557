"""Runs that grow: the same whatever interrupts them, and as before where they fall."""

import collections
import itertools
import json

import jax
import numpy as np
import pytest
from etils import epath

from dresnet_jax.errors import UserError
from dresnet_jax.figures import run
from dresnet_jax.structure import changes
from dresnet_jax.structure.growth import events, training, units
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import (
    checkpointing,
    evaluation,
    experiment,
    leaves,
    loop,
    watching,
    workdir,
)
from dresnet_jax.training.experiment import Experiment


@pytest.fixture
def config(small_config):
    """Four epochs of two steps, with events after the first three."""
    small_config.data.batch_size = 16
    small_config.data.train_examples = 32
    small_config.data.validation_examples = 64
    small_config.model.width = 8
    small_config.model.blocks_per_stage = (4,)
    with small_config.ignore_type():
        small_config.model.connections.topology = "none"
        small_config.model.connections.gate = "tanh"
        small_config.model.connections.projection = "none"
    train, growth = small_config.train, small_config.growth
    train.num_steps, train.log_every_steps, train.checkpoint_every_steps = 14, 2, 3
    train.keep_checkpoints = 2
    growth.events = ("connections", "width", "depth")
    growth.every_epochs, growth.trial_epochs = 2, 1
    growth.trial_batches = growth.trial_steps = 2
    growth.max_loss, growth.max_step_seconds = 1.0, 1e9
    growth.connections = 1
    return small_config


def train(config, directory):
    def watch():
        return watching.Watch(directory)

    with workdir.claim(directory, config, overwrite=False):
        return training.run(config, directory, watch)


def same(one, other):
    result, expected = (
        leaves.by_name(evaluation.open_run(directory)[1].state)
        for directory in (one, other)
    )
    assert result.keys() == expected.keys()
    for name, leaf in result.items():
        if name == "key":
            continue
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def history(directory):
    lines = (directory / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return epath.Path(tmp_path_factory.mktemp("unbroken"))


@pytest.fixture
def unbroken(shared, config):
    """The directory of a run that nothing interrupted."""
    if not (shared / "run" / "report.json").exists():
        train(config, shared / "run")
    return shared / "run"


@pytest.mark.slow
def test_a_run_grows_and_reports_how(unbroken):
    entries = history(unbroken)
    assert [e["kind"] for e in entries] == ["connections", "width", "depth"]
    assert [e["step"] for e in entries] == [4, 8, 12]
    assert [e["result"] for e in entries] == ["accepted"] * 3
    for before, after in itertools.pairwise(entries):
        assert before["params"][1] == after["params"][0]
        assert before["multiply_adds"][1] == after["multiply_adds"][0]
    assert all(e["error"] <= 1e-5 for e in entries)
    exp, restored = evaluation.open_run(unbroken)
    counted = sum(x.size for x in jax.tree.leaves(restored.state.params))
    assert counted == entries[-1]["params"][1]
    assert exp.model.spec.blocks_per_stage == (5,)
    assert len(exp.model.spec.connections.topology.edges) == 1
    report = json.loads((unbroken / "report.json").read_text())
    assert report["history"] == entries
    # Steps 1 to 4, 8, 12 and 14 are of one structure each; 16 images a step.
    each = [entries[0]["multiply_adds"][0], *(e["multiply_adds"][1] for e in entries)]
    passes = [3 * 4 * each[0], 3 * 4 * each[1], 3 * 4 * each[2], 3 * 2 * each[3]]
    chosen = [e["passes"] * e["multiply_adds"][0] for e in entries]
    assert report["training_multiply_adds"] == 16 * (sum(passes) + sum(chosen))
    # Two batches; of three candidates each of two steps is a gradient and 4 tries.
    assert [e["passes"] for e in entries] == [2 * 3 * (2 * (3 + 4) + 1), 1, 3]
    assert report["params"] == counted
    paths = [path.name for path in run.run_pictures(unbroken)]
    assert "growth.png" in paths
    about = checkpointing.about(unbroken, 14)
    assert [e["event"] for e in about["history"]] == [0, 1, 2]


# Behind an event but before a checkpoint of the change, and in a trial.
@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 9])
def test_a_run_that_was_killed_ends_with_the_same_bits(
    unbroken, config, tmp_path, monkeypatch, step
):
    directory = epath.Path(tmp_path) / "run"
    calls = []
    compiled = Experiment.compile_train_step

    def killed(self, num_steps=1):
        program = compiled(self, num_steps)

        def run(state, *data):
            if int(state.step) == step and not calls:
                calls.append(step)
                raise MemoryError("killed")
            return program(state, *data)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "compile_train_step", killed)
        with pytest.raises(MemoryError):
            train(config, directory)
    train(config, directory)
    same(directory, unbroken)
    assert history(directory) == history(unbroken)


def falling():
    """An evaluation whose accuracy falls each time."""
    values = iter(np.linspace(1, 0, 100))
    return lambda self: {"accuracy": float(next(values)), "loss": 0.0}


@pytest.mark.slow
def test_what_is_reverted_leaves_the_bits_of_before(config, tmp_path, monkeypatch):
    # Without the programs of the other tests.
    monkeypatch.setattr(experiment, "_recent", collections.deque(maxlen=8))
    built = []
    compiled = Experiment._compile_train_step

    def counted(self, num_steps):
        built.append(num_steps)
        return compiled(self, num_steps)

    with monkeypatch.context() as patch:
        patch.setattr(training._Growth, "_validated", falling())
        patch.setattr(Experiment, "_compile_train_step", counted)
        config.growth.max_loss = 0.0
        config.growth.events, config.growth.choose = ("width", "depth"), "random"
        directory = epath.Path(tmp_path) / "grown"
        train(config, directory)
    entries = history(directory)
    assert [e["result"] for e in entries] == ["reverted"] * 2
    assert [e["trial_steps"] for e in entries] == [2] * 2
    # Each structure is compiled once: the one that the run goes back to is there.
    assert len(built) == 1 + 2
    config.growth.events = ()
    plain = epath.Path(tmp_path) / "plain"
    with workdir.claim(plain, config, overwrite=False):
        loop.run(experiment.build(config), plain)
    same(directory, plain)
    lines = [json.loads(x) for x in (directory / "metrics.jsonl").open()]
    steps = [line["step"] for line in lines if "train_loss" in line]
    assert steps == sorted(set(steps))


def test_a_change_above_the_budget_is_refused(config, tmp_path):
    config.growth.events = ("depth",)
    config.growth.max_params = 1
    directory = epath.Path(tmp_path) / "run"
    train(config, directory)
    (entry,) = history(directory)
    assert entry["result"] == "rejected"
    assert "above growth.max_params" in entry["why"]
    exp, _ = evaluation.open_run(directory)
    assert exp.model.spec.blocks_per_stage == (4,)


def test_a_step_may_take_only_so_long(config, tmp_path):
    """The runs of the other tests may take long, and are accepted."""
    config.growth.events, config.growth.max_step_seconds = ("width",), 1e-9
    directory = epath.Path(tmp_path) / "run"
    train(config, directory)
    (entry,) = history(directory)
    assert entry["result"] == "rejected"
    assert "max_step_seconds = 1e-09" in entry["why"]


@pytest.mark.slow
def test_an_architecture_is_searched_while_the_network_grows(config, tmp_path):
    config.growth.events, config.search.share = ("connections", "width"), 0.5
    config.data.batch_size = 8
    with config.ignore_type():
        config.model.connections.topology = ((4, 1),)
    directory = epath.Path(tmp_path) / "run"
    train(config, directory)
    assert [e["result"] for e in history(directory)] == ["accepted"] * 2


@pytest.mark.slow
def test_growing_and_pruning_alternate(config, tmp_path):
    config.growth.events = ("connections", "prune", "prune")
    directory = epath.Path(tmp_path) / "run"
    train(config, directory)
    entries = history(directory)
    assert [e["result"] for e in entries] == ["accepted", "accepted", "rejected"]
    assert entries[0]["what"] == entries[1]["what"]
    exp, _ = evaluation.open_run(directory)
    assert not exp.model.spec.connections.topology.edges


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"events": ("widht",)}, "widht.*width"),
        ({"choose": "best"}, "best.*random"),
        ({"channel_rule": "entropie"}, "entropie.*entropy"),
        ({"trial_epochs": 2}, r"trial_epochs = 2 must be from 1 to .* = 1"),
        ({"trial_epochs": 0}, "trial_epochs = 0"),
        ({"quantile": 1.0}, "quantile = 1.0"),
        ({"noise": -0.1}, "noise = -0.1"),
        ({"trial_batches": 0}, "trial_batches = 0"),
        ({"warmup_steps": -1}, "warmup_steps = -1"),
        ({"connections": 0}, "connections = 0"),
        ({"every_epochs": 4}, "need 13 epochs, 26 steps; the run has 14"),
    ],
)
def test_wrong_values_are_named(config, fields, message):
    config.growth.update(fields)
    with pytest.raises(UserError, match=message):
        events.check(experiment.build(config))


@pytest.mark.parametrize("rule", sorted(units.RULES))
def test_channels_are_scored_by_each_rule(config, rule):
    config.growth.channel_rule = rule
    exp = experiment.build(config)
    network = Network(exp, exp.create_state())
    (batch,) = changes.training_batches(network, exp.open_data(), 0, 1)
    scores = units.RULES[rule](network, batch, [1, 3])
    assert {i: x.shape for i, x in scores.items()} == {1: (8,), 3: (8,)}
    assert all(np.isfinite(x).all() and x.std() > 0 for x in scores.values())
    if rule == "entropy":
        assert all((x >= 0).all() and (x <= 1).all() for x in scores.values())


def test_entropy_is_1_of_what_is_even_and_0_of_what_is_constant():
    even = np.linspace(0, 1, 20 * 64, endpoint=False, dtype=np.float32)
    rare = np.zeros_like(even)
    rare[0] = 1
    x = np.stack([even, np.ones_like(even), rare], axis=-1).reshape(20, 8, 8, 3)
    result = units._entropy(x)
    np.testing.assert_allclose(result[:2], [1, 0], atol=1e-6)
    assert 0 < result[2] < 0.01


def test_divided_channels_are_whole_buckets():
    scores = {1: np.arange(8.0), 2: np.arange(8.0, 24.0), 3: np.zeros(8)}
    assert units.chosen(scores, 0.5, 8) == {2: [*range(15, -1, -1)]}
    assert units.chosen(scores, 0.9, 8) == {2: [15, 14, 13, 12, 11, 10, 9, 8]}
    assert units.chosen({1: np.arange(4.0)}, 0.9, 8) == {1: [3, 2, 1, 0] * 2}


def test_the_best_step_may_be_of_another_structure(config):
    config.train.report_on, config.train.keep_best = "best", 1
    with pytest.raises(UserError, match=r"report_on = best is of one structure"):
        events.check(experiment.build(config))


def test_only_train_grows(config, tmp_path):
    with pytest.raises(UserError, match=r"growth\.events"):
        loop.run(experiment.build(config), epath.Path(tmp_path))
