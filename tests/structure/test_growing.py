"""Networks grow connections, answer as before, and go on as if nothing had been."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dresnet_jax.data.streaming import Call
from dresnet_jax.errors import UserError
from dresnet_jax.structure import growing
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import evaluation, experiment, leaves

NEW = [(5, 2), (6, 4)]


def network(config, steps=3, **connections):
    """A network that has trained for some steps."""
    config.model.connections.update(connections)
    parts = experiment.build(config)
    return trained(Network(parts, parts.create_state()), steps)


def trained(found, steps):
    """The network after some steps, whose own arrays it does not consume."""
    parts, state = found.parts, jax.tree.map(jnp.copy, found.state)
    splits = parts.open_splits()
    start = int(state.step)
    calls = [Call(start + n, 1) for n in range(steps)]
    road = parts.road
    data = road.data(road.place(splits["train"]), parts.config.seed, calls)
    program = parts.compile_train_step()
    for given in data:
        state, _ = program(state, *given.arrays)
    return Network(parts, state)


@pytest.fixture
def sparse(small_config):
    """Six blocks, few of which read earlier ones."""
    small_config.model.blocks_per_stage = (5, 1)
    small_config.train.ema_decay = 0.9
    with small_config.ignore_type():
        small_config.model.connections.topology = ((3, 1), (5, 3))
    return small_config


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_larger_network_answers_as_before_and_learns(sparse, optimizer):
    sparse.optimizer.name = optimizer
    before = network(sparse)
    after, growth = growing.grown(before, NEW)
    assert growth.error <= 1e-6
    assert growth.edges == tuple(NEW)
    assert growth.params_before == optax.tree.size(before.state.params)
    assert growth.params_after == optax.tree.size(after.state.params)
    assert growth.params_after > growth.params_before
    assert after.parts.model.spec.connections.topology.edges == (
        (3, 1),
        (5, 2),
        (5, 3),
        (6, 4),
    )
    later = trained(after, 2)
    kernel = later.state.params["connections"]["block_6"]["from_4"]["kernel"]
    assert float(jnp.abs(kernel).max()) > 0
    assert int(later.state.step) == int(before.state.step) + 2


def test_what_was_there_is_carried_to_the_bit(sparse):
    before = network(sparse)
    after, _ = growing.grown(before, NEW)
    old, new = (leaves.by_name(one.state) for one in (before, after))
    assert not old.keys() - new.keys()
    for name in old:
        if old[name].shape == new[name].shape:
            assert jnp.array_equal(old[name], new[name]), name
    # Block 5 reads 2, which is new, before 3.
    for name in ("params", "ema_params"):
        weights = f"{name}/connections/block_5/gate_weights"
        assert new[weights][1] == old[weights][0]


def test_new_squares_are_those_of_their_kind(sparse):
    """From 0, Adam's first steps would be several times the learning rate."""
    sparse.optimizer.name = "adamw"
    before = network(sparse)
    after, _ = growing.grown(before, NEW)
    old, new = (
        {n: x for n, x in leaves.by_name(one.state.opt_state).items() if "/nu/" in n}
        for one in (before, after)
    )
    of_kernels = [
        x.mean() for n, x in old.items() if "connections" in n and n.endswith("kernel")
    ]
    (fresh,) = [
        x for n, x in new.items() if n.endswith("connections/block_6/from_4/kernel")
    ]
    np.testing.assert_allclose(fresh, np.mean(of_kernels), rtol=1e-5)
    assert float(jnp.min(jnp.stack([x.min() for x in new.values()]))) >= 0


@pytest.mark.parametrize("name", ["none"])
def test_the_first_connections_of_a_network(sparse, name):
    with sparse.ignore_type():
        sparse.model.connections.topology = name
    before = network(sparse)
    assert "connections" not in before.state.params
    after, growth = growing.grown(before, NEW)
    assert growth.error <= 1e-6
    assert sorted(after.state.params["connections"]) == ["block_5", "block_6"]
    trained(after, 1)


def test_a_failed_change_leaves_all_as_it_was(sparse):
    before = network(sparse)
    kept = jax.tree.map(jnp.copy, before.state)
    with pytest.raises(UserError, match="is there already"):
        growing.grown(before, [(6, 4), (3, 1)])
    for one, other in zip(*map(jax.tree.leaves, (kept, before.state)), strict=True):
        assert jnp.array_equal(one, other)
    topology = before.parts.config.model.connections.topology
    assert tuple(topology) == ((3, 1), (5, 3))


def test_a_change_of_the_answers_is_told(sparse):
    before = network(sparse, steps=1)
    params = jax.tree.map(lambda x: x, before.state.params)
    params["head"]["linear"]["bias"] += 0.1
    other = Network(before.parts, before.state.replace(params=params))
    batch = evaluation.first_batch(before.parts)
    assert batch.images.shape[0] > 0
    assert growing.difference(before, before) == 0
    assert growing.difference(before, other) > 0.001
