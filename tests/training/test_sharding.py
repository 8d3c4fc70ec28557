"""The mesh fits the devices, and the state lies where the rules say."""

import json

import pytest

from dresnet_jax import defaults
from dresnet_jax.errors import UserError
from dresnet_jax.training import experiment, sharding
from tests.conftest import run_python


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"fsdp": 3}, "replica 1 x data 1 x fsdp 3 do not fit what was found: 1 dev"),
        ({"data": 2}, "data 2 x fsdp 1 do not fit"),
        ({"replica": 2}, "replica 2 x data 1"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes, message):
    config = defaults.get_config().sharding
    config.update(axes)
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(config, 8)


def test_a_name_of_norms_is_checked(tiny_images_config):
    tiny_images_config.sharding.batch_norm = "per_shart"
    with pytest.raises(UserError, match="Did you mean 'per_shard'"):
        experiment.build(tiny_images_config)


def test_parts_of_a_batch_have_to_be_whole(tiny_images_config):
    tiny_images_config.train.accumulate_steps = 3
    with pytest.raises(UserError, match=r"by 1 devices x train\.accum"):
        experiment.build(tiny_images_config)


PLACES = """
import json, jax
from configs import digits
from dresnet_jax.training import experiment, sharding
config = digits.get_config()
config.model.width = 4
config.model.blocks_per_stage = (1, 1, 1)
config.train.ema_decay = 0.9
config.sharding.fsdp = 2
state = experiment.build(config).create_state()
print(json.dumps({
    jax.tree_util.keystr(path, simple=True, separator="/"): [
        leaf.size, leaf.addressable_shards[0].data.size]
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if hasattr(leaf, "addressable_shards") and leaf.ndim}))
"""


def test_parameters_their_average_and_their_momentum_are_split():
    code, output, errors = run_python("-c", PLACES, devices=4)
    assert code == 0, errors
    sizes = json.loads(output)
    kernels = [name for name in sizes if name.endswith("kernel")]
    for start in ("params", "ema_params", "opt_state"):
        assert any(name.startswith(start) for name in kernels)
    for name, (whole, part) in sizes.items():
        assert part == (whole // 2 if name in kernels else whole), name


# Three steps of a small network: the losses, and what its text has.
PROGRAMS = """
import json, sys
from configs import digits
from dresnet_jax.training import experiment
for fields in json.loads(sys.argv[1]):
    config = digits.get_config()
    config.model.width = 4
    config.model.blocks_per_stage = (1, 1, 1)
    config.train.num_steps = 3
    config.sharding.update(fields)
    parts = experiment.build(config)
    data = parts.open_data()
    state, step = parts.create_state(), parts.compile_train_step()
    losses = []
    for inputs, _ in parts.inputs.data(data, 0, parts.calls(0)):
        state, result = step(state, inputs)
        losses.append(float(result.loss[0]))
    text = step.as_text()
    counts = text.count(" all-reduce("), text.count(" all-gather(")
    print(json.dumps([losses, *counts]))
"""


@pytest.fixture(scope="module")
def programs():
    """Of eight devices: whole parameters, split ones, and norms of each shard."""
    fields = [{}, {"fsdp": 4}, {"batch_norm": "per_shard"}]
    code, output, errors = run_python("-c", PROGRAMS, json.dumps(fields), devices=8)
    assert code == 0, errors
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.slow
def test_split_parameters_train_as_whole_ones(programs):
    (whole, _, _), (split, _, gathers), _ = programs
    assert split == pytest.approx(whole, rel=1e-5)
    assert gathers > 0


@pytest.mark.slow
def test_norms_of_each_shard_need_no_communication(programs):
    """Eight devices compute what one does whose norms take eight parts of the batch."""
    (losses, reduces, _), _, (of_shards, fewer, _) = programs
    assert fewer < reduces
    assert of_shards != pytest.approx(losses, rel=1e-3)
