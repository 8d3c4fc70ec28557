"""Architecture and network learn in turn, each from its own examples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dresnet_jax.data import records, sources
from dresnet_jax.errors import UserError
from dresnet_jax.structure import discretising, pruning
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import (
    alternating,
    experiment,
    leaves,
)
from dresnet_jax.training.inputs import Divided


def test_the_gradient_is_that_of_the_formula():
    """By hand: w' = w - r (w - a) and the other loss is (a w')^2 / 2."""
    params = {"block": {"gate_weights": jnp.asarray(2.0), "kernel": jnp.asarray(3.0)}}

    def split(given):
        return given["block"]["gate_weights"], given["block"]["kernel"]

    def own(given):
        a, w = split(given)
        return (w - a) ** 2 / 2

    def other(given):
        a, w = split(given)
        return (a * w) ** 2 / 2

    marks = {"block": {"gate_weights": True, "kernel": False}}
    a, w, r = 2.0, 3.0, 0.1
    ahead = w - r * (w - a)
    result = {
        rate: float(split(alternating.gradient(own, other, params, marks, rate))[0])
        for rate in (None, 0.0, r)
    }
    np.testing.assert_allclose(result[None], a * w**2, rtol=1e-6)
    np.testing.assert_allclose(result[0.0], a * w**2, rtol=1e-6)
    by_hand = a * ahead**2 + a**2 * ahead * r
    np.testing.assert_allclose(result[r], by_hand, rtol=1e-6)


@pytest.fixture
def config(small_config):
    """A mixed and connected network that searches on half of the examples."""
    small_config.data.batch_size = 16
    small_config.data.train_examples = 96
    small_config.model.name = "dresnet18"
    small_config.model.block = "mixed"
    small_config.model.width = 4
    small_config.model.blocks_per_stage = (3,)
    small_config.model.mixture.operations = ("identity", "conv3")
    small_config.search.share = 0.5
    small_config.train.num_steps = 5
    return small_config


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_the_parts_share_no_example(config, mode, share):
    config.data.mode, config.search.share = mode, share
    config.data.crop_padding = 0
    exp = experiment.build(config)
    inputs_of = exp.inputs
    assert isinstance(inputs_of, Divided)
    assert exp.steps_per_epoch == (1 - share) * 96 // 16
    data = exp.open_data()
    key, seen = jax.random.key(0), {"first": set(), "rest": set()}
    calls = exp.calls(0, 12)
    given = inputs_of.data(data, config.seed, calls)
    for call, (inputs, _) in zip(calls, given, strict=True):
        shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(inputs)]
        expected = jax.tree.leaves(inputs_of.abstract(1))
        assert shapes == [(x.shape, x.dtype) for x in expected]
        place = inputs, key, jnp.asarray(call.start), jnp.asarray(0)
        for name, batch in (
            ("first", inputs_of.batch(*place)),
            ("rest", inputs_of.other_batch(*place)),
        ):
            seen[name] |= {image.tobytes() for image in np.asarray(batch.images)}
    assert len(seen["first"]) == round((1 - share) * 96)
    assert len(seen["rest"]) == round(share * 96)
    assert not seen["first"] & seen["rest"]


def test_a_part_says_where_an_example_is():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    whole = sources.Arrays(images, np.arange(6, dtype=np.int32), corrupt=(1, 5))
    first, rest = whole.part(0, 4), whole.part(4, 6)
    assert (len(first), len(rest)) == (4, 2)
    assert (first.corrupt, rest.corrupt) == ((1,), (1,))
    assert int(rest.labels[0]) == 4
    assert [example.label for example in rest.read([0])] == [4]
    shards = (records.Shard("a", 0, 5, 5), records.Shard("b", 2, 3, 9))
    stored = records.Records(shards, parse=lambda record: None, remedy="")
    before, after = stored.part(0, 4), stored.part(4, 8)
    assert (len(before), len(after)) == (4, 4)
    assert before.shards == (records.Shard("a", 0, 4, 5),)
    assert after.shards == (records.Shard("a", 4, 1, 5), shards[1])
    # Neither file can be read.
    assert [after.where(i) for i in range(2)] == ["record 4 of a", "record 2 of b"]


@pytest.mark.parametrize("order", sorted(alternating.ORDERS))
def test_both_learn(config, order):
    config.search.order = order
    exp = experiment.build(config)
    start = leaves.by_name(exp.create_state().params)
    program, data = exp.compile_train_step(), exp.open_data()
    state = exp.create_state()
    for inputs, _ in exp.inputs.data(data, config.seed, exp.calls(0)):
        state, result = program(state, inputs)
    assert np.isfinite(result.loss).all()
    is_gate = leaves.by_name(exp.optimizers.is_architecture(state.params))
    assert any(is_gate.values())
    for name, leaf in leaves.by_name(state.params).items():
        assert np.any(leaf != start[name]), f"{name} does not learn"


def test_neither_moves_the_other(config):
    exp = experiment.build(config)
    params = exp.create_state().params
    grads = jax.tree.map(jnp.ones_like, params)
    both = exp.optimizers
    is_gate = leaves.by_name(both.is_architecture(params))
    for name, part in (("network", both.network), ("architecture", both.architecture)):
        memory = part.init(params)
        update = jax.jit(part.update)
        for _ in range(3):  # The rate of the first step is 0.
            updates, memory = update(grads, memory, params)
        for leaf_name, moved in leaves.by_name(updates).items():
            moves = is_gate[leaf_name] == (name == "architecture")
            assert np.any(moved) == moves, (name, leaf_name)
    joined, _ = jax.jit(both.joined.update)(grads, both.joined.init(params), params)
    assert optax.tree.size(joined) == optax.tree.size(params)


def test_what_is_not_finite_changes_neither(config):
    config.train.on_non_finite = "skip"
    exp = experiment.build(config)
    data = exp.open_data()
    ((inputs, _),) = exp.inputs.data(data, config.seed, exp.calls(0, 1))
    state = exp.create_state()
    # Of one weight of an operation alone.
    params = state.params
    bad = params["block_1"]["mixture"]["gate_weights"].at[0].set(jnp.inf)
    block = {**params["block_1"], "mixture": {"gate_weights": bad}}
    state = state.replace(params={**params, "block_1": block})
    before = leaves.by_name(jax.tree.map(jnp.copy, (state.params, state.opt_state)))
    after, _ = exp.compile_train_step()(state, inputs)
    for name, leaf in leaves.by_name((after.params, after.opt_state)).items():
        np.testing.assert_array_equal(leaf, before[name], err_msg=name)


def test_what_is_left_of_a_search_trains_on_all(config):
    exp = experiment.build(config)
    network = Network(exp, exp.create_state())
    chosen = discretising.discretised(network, discretising.choices(network))
    fewer = pruning.pruned(network, [])
    for one in (chosen, fewer):
        assert one.experiment.config.search.share == 0
        assert not isinstance(one.experiment.inputs, Divided)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {"share": 1.0}}, r"share = 1\.0 must be in \[0, 1\)"),
        ({"search": {"share": 0.9}}, "leaves parts of 10 and 86"),
        ({"search": {"order": "third"}}, "third.*first, second"),
        ({"search": {"learning_rate": 0.0}}, r"learning_rate = 0\.0"),
        ({"train": {"steps_per_call": 2}}, "needs train.steps_per_call = 1"),
        ({"optimizer": {"gate_freeze_first": 0.5}}, "gate_freeze_first"),
        ({"model": {"name": "resnet18", "block": None}}, "resnet18 has neither"),
    ],
)
def test_wrong_values_are_named(config, change, message):
    with config.ignore_type():
        config.update(change)
    with pytest.raises(UserError, match=message):
        experiment.build(config)
