"""Changes of every kind of block leave the answers as they are, or are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dresnet_jax.data.calls import Call
from dresnet_jax.errors import UserError
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.structure import changes, deepening, growing, widening
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import experiment, leaves
from tests.conftest import products

CHANGES = {
    "connections": lambda network: growing.grown(network, [(4, 2)]),
    "width": lambda network: widening.widened(network, {1: [0, 3, 3], 3: [1] * 8}),
    "depth": lambda network: deepening.deepened(network, 2),
}


def network(config, **model):
    """A network whose every leaf is away from where it starts."""
    config.model.update(model)
    exp = experiment.build(config)
    return Network(exp, disturbed(exp.create_state()))


def disturbed(state):
    def moved(path, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        name = leaves.name(path)
        random = np.random.RandomState(sum(map(ord, name)))
        noise = 0.1 * random.standard_normal(leaf.shape).astype(leaf.dtype)
        # What is a mean of squares stays above 0.
        is_square = "/nu/" in name or "/var" in name
        result = np.asarray(leaf) + (np.abs(noise) if is_square else noise)
        return jax.device_put(result, leaf.sharding)

    return jax.tree_util.tree_map_with_path(moved, state)


@pytest.fixture
def config(small_config):
    """Four blocks, in two stages, one of which reads an earlier one."""
    small_config.data.batch_size = 16
    small_config.model.width = 8
    small_config.model.blocks_per_stage = (3, 1)
    small_config.model.connections.projection = "per_edge"
    small_config.optimizer.name = "adamw"
    small_config.train.ema_decay = 0.9
    with small_config.ignore_type():
        small_config.model.connections.topology = ((3, 1),)
    return small_config


def first_batch(result):
    data = result.experiment.open_data()
    (batch,) = changes.training_batches(result, data, 0, 1)
    return batch


def refused(block, kind):
    if kind == "connections":
        return ""
    if block == "mixed":
        return "since it is 'mixed'" if kind == "width" else "no factor that silences"
    return ""


def of_kind(config, block):
    """A network of blocks of a kind, with the shortcuts that such blocks can have."""
    shortcut = "bare" if BLOCKS[block].pre_activation else "identity"
    shortcut = {"convnext": "always", "inverted": "kept"}.get(block, shortcut)
    return network(config, block=block, shortcut=shortcut)


@pytest.mark.parametrize(
    ("block", "kind"),
    products(sorted(BLOCKS), sorted(CHANGES, reverse=True), strength=1),
)
def test_every_kind_of_block_answers_as_before(config, block, kind):
    before = of_kind(config, block)
    if why := refused(block, kind):
        with pytest.raises(UserError, match=why):
            CHANGES[kind](before)
        return
    after = CHANGES[kind](before)
    error = changes.difference(before, after, first_batch(before))
    print(f"{block}, {kind}: {error:.1e}")
    assert error <= 1e-5
    assert optax.tree.size(after.state.params) > optax.tree.size(before.state.params)
    assert changes.products(after.experiment) > changes.products(before.experiment)
    shapes = after.experiment.create_state(abstract=True)
    assert jax.tree.map(jnp.shape, after.state) == jax.tree.map(jnp.shape, shapes)


def trained(result, count=2):
    """The network after some steps, whose own arrays it does not consume."""
    exp, state = result.experiment, jax.tree.map(jnp.copy, result.state)
    data = exp.open_data()
    calls = [Call(int(state.step) + n, 1) for n in range(count)]
    program = exp.compile_train_step()
    for inputs, _ in exp.inputs.data(data, exp.config.seed, calls):
        state, _ = program(state, inputs)
    return Network(exp, state)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_all_changes_one_after_the_other_and_training_continues(config, optimizer):
    config.optimizer.name = optimizer
    now = trained(network(config), 1)
    batch = first_batch(now)
    for kind in ("depth", "connections", "width"):
        before, now = now, CHANGES[kind](now)
        assert changes.difference(before, now, batch) <= 1e-5
    later = trained(now, 4)
    model = now.experiment.config.model
    assert list(model.blocks_per_stage) == [4, 1]
    assert tuple(model.hidden) == (11, 8, 16, 8, 16)
    assert [tuple(e) for e in model.connections.topology] == [(4, 1), (4, 2)]
    assert int(later.state.step) == int(now.state.step) + 4
    old, new = (leaves.by_name(one.state.params) for one in (now, later))
    for name in old:
        assert np.any(old[name] != new[name]), f"{name} does not learn"


def test_copies_share_what_comes_in_and_out(config):
    before = network(config)
    after = widening.widened(before, {1: [2, 2]})
    old, new = (leaves.by_name(one.state) for one in (before, after))
    kernel = "params/block_1/conv2/conv/kernel"
    np.testing.assert_allclose(new[kernel][:, :, 8], old[kernel][:, :, 2] / 3, 1e-6)
    for name in old:
        if name.startswith("opt_state") and name.endswith("block_1/conv1/conv/kernel"):
            power = 2 if "/nu/" in name else 1
            np.testing.assert_allclose(
                new[name][..., 9], old[name][..., 2] / 3**power, 1e-6
            )
    mean = "batch_stats/block_1/conv1/norm/mean"
    assert new[mean][8] == new[mean][9] == old[mean][2]


def test_noise_reports_its_own_error(config):
    before = network(config)
    after = widening.widened(before, {1: [0, 1]}, noise=0.1)
    assert 1e-5 < changes.difference(before, after, first_batch(before)) < 1


@pytest.mark.slow
def test_connections_that_go_take_only_what_is_theirs(config):
    now = trained(network(config), 1)
    larger = growing.grown(now, [(4, 1), (4, 2)])
    smaller = growing.shrunk(larger, [(4, 1), (4, 2)])
    error = changes.difference(larger, smaller, first_batch(now))
    assert error <= 1e-5, "they carried nothing"
    there, here = (leaves.by_name(result.state) for result in (smaller, now))
    assert there.keys() == here.keys()
    for name, leaf in there.items():
        assert np.all(leaf == here[name]), name
    one = growing.shrunk(larger, [(4, 1)])
    own = leaves.by_name(larger.state.opt_state)
    for name, leaf in leaves.by_name(one.state.opt_state).items():
        if name.endswith("block_4/gate_weights"):
            np.testing.assert_array_equal(leaf, own[name][1:])
    trained(one, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: growing.grown(n, []), "No connection is named"),
        (lambda n: growing.shrunk(n, []), "No connection is named"),
        (lambda n: growing.shrunk(n, [(4, 1)]), r"\(4, 1\).*does not exist"),
        (lambda n: growing.grown(n, [(3, 1)]), "is there already"),
        (lambda n: widening.widened(n, {1: []}), "No channel is named"),
        (lambda n: widening.widened(n, {9: [0]}), "no block 9"),
        (lambda n: widening.widened(n, {1: [8]}), "channels 0 to 7, and no 8"),
        (lambda n: deepening.deepened(n, 5), "there is no block 5"),
        (lambda n: deepening.deepened(n, 0), "there is no block 0"),
    ],
)
def test_a_failed_change_leaves_all_as_it_was(config, change, message):
    before = network(config)
    kept = jax.tree.map(jnp.copy, before.state)
    with pytest.raises(UserError, match=message):
        change(before)
    jax.tree.map(np.testing.assert_array_equal, kept.params, before.state.params)
    assert tuple(before.experiment.config.model.connections.topology) == ((3, 1),)


@pytest.mark.parametrize(
    ("kind", "model", "message"),
    [
        ("width", {"norm": "group"}, "norm 'group' compares its channels"),
        ("width", {"norm": "layer"}, "norm 'layer' compares its channels"),
        ("width", {"name": "resnext50_32x4d"}, "32 groups"),
        ("depth", {"activation": "gelu"}, "activation 'gelu' changes"),
        ("depth", {"shortcut": "conv"}, "its shortcut is 'conv'"),
        ("depth", {"shortcut": "none"}, "its shortcut is 'none'"),
        ("depth", {"drop_path": 0.1}, "drop_path is not 0"),
        ("depth", {"conditional": {"target_rate": 0.5}}, "gates of conditional paths"),
        ("depth", {"connections": {"weights": "by_distance"}}, "share weights"),
    ],
)
def test_what_would_change_the_answers_is_refused(config, kind, model, message):
    before = network(config, **model)
    with pytest.raises(UserError, match=message):
        CHANGES[kind](before)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [(2, 2), (2,)])
def test_exits_and_stages_keep_their_places(config, blocks):
    config.model.exits.after = (1,)
    before = network(config, blocks_per_stage=blocks, connections={"topology": "none"})
    batch = first_batch(before)
    after = deepening.deepened(before, 1)
    assert changes.difference(before, after, batch) <= 1e-5
    assert tuple(after.experiment.config.model.exits.after) == (1,)
    later = deepening.deepened(after, 1)
    assert changes.difference(after, later, batch) <= 1e-5
    trained(later, 1)
