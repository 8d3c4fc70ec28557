"""Mixed blocks become ordinary ones, and the network stays what one-hot weights say."""

import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax.errors import UserError
from dresnet_jax.structure import discretising
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import evaluation, experiment
from tests.acceptance.small_run import last_json
from tests.conftest import apply, run_command

OF_BLOCKS = (("none", "conv3", "deep"), ("depthwise",), ("identity", "pool", "conv3"))
CHOSEN = ("deep", "depthwise", "conv3")


@pytest.fixture
def mixed(small_config):
    """A run's config: two mixed blocks and one that is not."""
    small_config.model.update(name="mixed18", blocks_per_stage=(2, 1))
    with small_config.ignore_type():
        small_config.model.mixture.operations = OF_BLOCKS
    return small_config


def network(config, weights=(0.0, 0.3, 0.9)):
    """A fresh network whose mixed blocks have some gate weights."""
    exp = experiment.build(config)
    state = exp.create_state()
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.array(weights) if path[-1].key == "gate_weights" else x,
        state.params,
    )
    return Network(exp, state.replace(params=params))


def logits(one):
    return apply(
        one.experiment.model,
        {"params": one.state.eval_params, "batch_stats": one.state.batch_stats},
        evaluation.first_batch(one.experiment).images[:8],
        train=False,
    )


def test_the_largest_weight_is_chosen(mixed):
    mixed.model.mixture.temperature_start = 0.5
    first, second = discretising.choices(network(mixed))
    assert (first.block, second.block) == (1, 3)
    assert (first.chosen, second.chosen) == ("deep", "conv3")
    expected = np.exp(np.array([0.0, 0.6, 1.8]))
    np.testing.assert_allclose(first.weights, expected / expected.sum(), rtol=1e-5)
    lines = discretising.table([first, second]).splitlines()
    words = ["1", "deep", *("deep", "0.682,", "conv3", "0.205,", "none", "0.113")]
    assert lines[1].split() == words


def test_what_is_left_is_the_network_with_one_hot_weights(mixed):
    result = network(mixed, (-1e4, -1e4, 0.0))
    smaller = discretising.discretised(result, discretising.choices(result))
    blocks = smaller.experiment.model.spec.blocks
    assert tuple(b.mixture.operations for b in blocks) == tuple((o,) for o in CHOSEN)
    np.testing.assert_allclose(logits(smaller), logits(result), rtol=0, atol=1e-6)
    # It is the ordinary network of its config, and not larger.
    ordinary = experiment.build(smaller.experiment.config).create_state(abstract=True)
    assert jax.tree.structure(smaller.state.params) == jax.tree.structure(
        ordinary.params
    )
    assert not any("mixture" in name for name in smaller.state.params["block_1"])
    counts = [one.experiment.step_flops for one in (smaller, result)]
    assert counts[0] < counts[1]


def test_averaged_weights_are_taken(mixed):
    mixed.train.ema_decay = 0.9
    result = network(mixed)
    averaged = jax.tree.map(lambda x: x + 1, result.state.params)
    result = Network(result.experiment, result.state.replace(ema_params=averaged))
    smaller = discretising.discretised(result, discretising.choices(result))
    kernel = smaller.state.params["head"]["linear"]["kernel"]
    np.testing.assert_array_equal(kernel, averaged["head"]["linear"]["kernel"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "resnet18"}, "resnet18 has no block with several operations"),
        ({"mixture": {"operations": ("deep",)}}, "mixed18 has no block with several"),
        ({"mixture": {"weights": "routed"}}, "gives each image operations of its own"),
    ],
)
def test_networks_without_a_choice_are_refused(mixed, fields, message):
    with mixed.ignore_type():
        mixed.model.update(fields)
    exp = experiment.build(mixed)
    with pytest.raises(UserError, match=message):
        discretising.choices(Network(exp, exp.create_state()))


ARGUMENTS = (
    "--config=configs/digits.py",
    "--config.model.name=mixed18",
    "--config.model.width=4",
    "--config.model.blocks_per_stage=(1,1)",
    "--config.train.num_steps=6",
)


def test_the_command_writes_a_run_that_resumes(tmp_path):
    run, to = tmp_path / "run", tmp_path / "chosen"
    candidates = "--config.model.mixture.operations=('none','pool','conv3')"
    code, _, errors = run_command("train", *ARGUMENTS, candidates, f"--workdir={run}")
    assert code == 0, errors
    arguments = (f"--workdir={run}", f"--to={to}")
    code, output, errors = run_command("discretise", *arguments, "--json")
    assert code == 0, errors
    result = last_json(output)
    assert result["weights"].keys() == {"1", "2"}
    for of_block, (chosen,) in zip(
        result["weights"].values(), result["operations"], strict=True
    ):
        assert of_block[chosen] == max(of_block.values())
    code, output, errors = run_command(
        "train",
        *ARGUMENTS,
        f"--workdir={tmp_path / 'tuned'}",
        *_printed_flags(output),
    )
    assert code == 0, errors
    assert "new here" not in output + errors
    code, _, errors = run_command("discretise", *arguments)
    assert code == 2
    assert f"error: {to} holds a run" in errors
    code, _, errors = run_command("discretise", f"--workdir={run}")
    assert code == 2
    assert errors == "error: --to is missing: give the directory that is written.\n"


def _printed_flags(output):
    """The flags that the command printed for the one that trains, as a shell reads."""
    _, _, flags = output.partition("in another --workdir, with\n")
    first, second = flags.splitlines()[:2]
    return shlex.split(first.removesuffix("\\") + second)
