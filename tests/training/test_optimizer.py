"""What decays, what has a rate of its own, and when the rate is what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits
from dresnet_jax.errors import UserError
from dresnet_jax.models import backbone
from dresnet_jax.training import experiment, optimizer


def config(**fields):
    made = digits.get_config().optimizer
    made.update(fields)
    return made


def network():
    """A small network with every kind of leaf."""
    run = digits.get_config()
    run.model.width = 4
    run.model.blocks_per_stage = (1, 1, 1)
    run.model.connections.gate = "gauss"
    run.model.connections.projection_bias = True
    return experiment.build(run)


def params():
    """Its parameters."""
    shapes = network().create_state(abstract=True).params
    return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)


def build(made, num_steps, **events):
    spec = network().model.spec
    is_gate = functools.partial(backbone.architecture, spec)
    return optimizer.build(made, num_steps, is_gate, **events)


def by_name(tree):
    """{path: leaf}, paths as 'block_1/conv1/norm/scale'."""
    return {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def one_update(made, gradient, num_steps=100):
    """The first update that is not 0, all gradients being `gradient`."""
    tx = build(made, num_steps)
    values = params()
    state = tx.init(values)
    gradients = jax.tree.map(lambda x: np.full_like(x, gradient), values)
    return by_name(jax.jit(tx.update)(gradients, state, values)[0])


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_only_kernels_decay(name):
    made = config(name=name, weight_decay=0.1, warmup_fraction=0.0)
    for path, update in one_update(made, 0.0).items():
        decays = np.abs(update).max() > 0
        assert decays == path.endswith("/kernel"), path


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_gates_and_sharpness_alone_have_the_multiplied_rate(name):
    fields = {"name": name, "weight_decay": 0.0, "warmup_fraction": 0.0}
    common = one_update(config(**fields, gate_multiplier=1.0), 1.0)
    faster = one_update(config(**fields, gate_multiplier=30.0), 1.0)
    multiplied = set()
    for path, update in common.items():
        ratio = float(np.asarray(faster[path] / update).flat[0])
        assert ratio == pytest.approx(30) or ratio == pytest.approx(1)
        if ratio > 2:
            multiplied.add(path)
    assert multiplied == {
        "connections/block_3/gate_weights",
        "connections/gate_sharpness",
    }


@pytest.mark.parametrize(
    ("fields", "frozen"),
    [
        ({"gate_freeze_first": 0.25}, {0, 1, 2}),
        ({"gate_freeze_last": 0.25}, {9, 10, 11}),
        ({"gate_freeze_first": 0.5, "gate_freeze_last": 0.25}, {*range(6), 9, 10, 11}),
        ({}, set()),
    ],
)
def test_gates_alone_are_frozen_where_the_config_says_so(fields, frozen):
    tx = build(config(warmup_fraction=0.0, **fields), num_steps=12)
    values = params()
    state = tx.init(values)
    gradients = jax.tree.map(jnp.ones_like, values)
    still = {"gates": set(), "others": set()}
    update_all = jax.jit(tx.update)
    for step in range(12):
        updates, state = update_all(gradients, state, values)
        for path, update in by_name(updates).items():
            if not np.abs(update).max():
                still["gates" if "gate_" in path else "others"].add(step)
    assert still == {"gates": frozen, "others": set()}


def test_gradients_are_clipped_by_their_global_norm():
    fields = {"weight_decay": 0.0, "warmup_fraction": 0.0, "momentum": 0.0}
    fields |= {"learning_rate": 1.0, "gate_multiplier": 1.0}
    clipped = one_update(config(**fields, clip_norm=2.0), 5.0)
    free = one_update(config(**fields, clip_norm=0.0), 5.0)
    assert float(jax.jit(optax.tree.norm)(clipped)) == pytest.approx(2.0, rel=1e-5)
    assert float(np.asarray(free["head/linear/bias"]).flat[0]) == pytest.approx(-5.0)


def test_the_rate_warms_up_and_falls_to_0():
    rate = optimizer.schedule(config(learning_rate=0.4, warmup_fraction=0.1), 200)
    assert float(rate(0)) == 0
    assert float(rate(10)) == pytest.approx(0.2)
    assert float(rate(20)) == pytest.approx(0.4)
    assert float(rate(110)) == pytest.approx(0.2)
    assert float(rate(200)) == pytest.approx(0, abs=1e-8)


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="Did you mean 'adamw'"):
        build(config(name="adam"), 10)


def test_gates_that_never_learn_are_refused():
    with pytest.raises(UserError, match="freeze the gates in the whole run"):
        build(config(gate_freeze_first=0.5, gate_freeze_last=0.5), 10)


def test_the_rate_rises_again_after_events():
    one = {"head": {"kernel": jnp.ones(())}, "connections": {}}
    plain = build(config(), 100)
    warmed = build(config(), 100, events=(20, 50), warmup_steps=10)

    def updates(learner):
        memory, result = learner.init(one), []
        for _ in range(70):
            update, memory = learner.update(one, memory, one)
            result.append(float(update["head"]["kernel"]))
        return np.asarray(result)

    parts = updates(warmed)[1:] / updates(plain)[1:]
    expected = np.ones(70)
    for event in (20, 50):
        expected[event : event + 10] = np.arange(1, 11) / 10
    np.testing.assert_allclose(parts, expected[1:], rtol=1e-5)
