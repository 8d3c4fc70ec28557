"""Weights of another run are taken where they fit, and what does not is listed."""

import jax
import numpy as np
import pytest
from etils import epath

from dresnet_jax.errors import UserError
from dresnet_jax.training import checkpointing, experiment, loop, transfer


@pytest.fixture
def other(tiny_images_config, tmp_path):
    """A run of two steps, and the config of one that starts from it."""
    config = tiny_images_config
    config.train.num_steps = 2
    config.train.ema_decay = 0.5
    directory = epath.Path(tmp_path / "other")
    directory.mkdir()
    loop.run(experiment.build(config), directory)
    config = config.copy_and_resolve_references()
    config.init.workdir = str(directory)
    return config


def started(config):
    exp = experiment.build(config)
    state = exp.create_state()
    return (state, *transfer.start_from(config.init, state))


def test_all_weights_are_the_averaged_ones_of_the_other_run(other):
    fresh, state, description = started(other)
    leaves = len(jax.tree.leaves(state.variables))
    assert description == f"weights: {leaves} leaves are those of step 2"
    directory = epath.Path(other.init.workdir)
    restored = checkpointing.restore(
        directory, experiment.build(other).create_state(abstract=True)
    ).state
    for result, expected in (
        (state.params, restored.ema_params),
        (state.ema_params, restored.ema_params),
        (state.batch_stats, restored.batch_stats),
        (state.opt_state, fresh.opt_state),
    ):
        jax.tree.map(np.testing.assert_array_equal, result, expected)
    assert int(state.step) == 0


def test_a_new_head_starts_from_scratch(other):
    other.data.num_classes = 3
    with pytest.raises(
        UserError, match=r"params/head/linear/\w+ is \(.*config.init.sk"
    ):
        started(other)
    other.init.skip = "head/"
    fresh, state, description = started(other)
    assert description.splitlines()[1:] == [
        "  new here: params/head/linear/bias",
        "  new here: params/head/linear/kernel",
    ]
    np.testing.assert_array_equal(
        state.params["head"]["linear"]["kernel"],
        fresh.params["head"]["linear"]["kernel"],
    )


def test_other_connections_are_listed(other):
    other.model.connections.topology = "none"
    _, _, description = started(other)
    _, *listed = description.splitlines()
    assert all(line.startswith("  only there: params/connections/") for line in listed)
    assert len(listed) == 3


def test_frozen_parameters_stay_as_they_were(other, tmp_path):
    other.optimizer.freeze = "^stem/|^block_1/"
    directory = epath.Path(tmp_path / "tuned")
    directory.mkdir()
    _, before, _ = started(other)
    exp = experiment.build(other)
    loop.run(exp, directory)
    after = checkpointing.restore(directory, exp.create_state(abstract=True)).state
    same = jax.tree.map(np.array_equal, before.params, after.params)
    assert all(jax.tree.leaves((same["stem"], same["block_1"])))
    assert not any(jax.tree.leaves(same["head"]))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("init.workdir", "nowhere", "init.workdir = nowhere holds no checkpoint"),
        ("init.skip", "(", r"init.skip = '\(' is no regular expression"),
        ("optimizer.freeze", "[", r"optimizer.freeze = '\[' is no regular expression"),
    ],
)
def test_wrong_values_are_refused(tiny_images_config, field, value, message):
    tiny_images_config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        experiment.build(tiny_images_config)


@pytest.mark.parametrize(("pattern", "which"), [("stam/", "no"), (".", "every")])
def test_a_pattern_of_frozen_parameters_names_some(
    tiny_images_config, tmp_path, pattern, which
):
    tiny_images_config.optimizer.freeze = pattern
    tiny_images_config.train.num_steps = 1
    with pytest.raises(UserError, match=f"names {which} parameter. Their paths begin"):
        loop.run(experiment.build(tiny_images_config), epath.Path(tmp_path))
