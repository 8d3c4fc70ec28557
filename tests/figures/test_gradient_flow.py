"""Gradients by the outputs of blocks, where their norms are known."""

import copy

import jax
import numpy as np
import pytest

from dresnet_jax.figures import gradient_flow
from dresnet_jax.training import evaluation, experiment
from tests.conftest import apply


@pytest.fixture
def one_stage(small_config):
    """Four blocks of one shape that add nothing to their inputs at the start."""
    config = small_config
    config.model.name = "resnetv2_18"
    config.model.blocks_per_stage = (4,)
    config.model.zero_last = True
    return config


def _norms(part):
    batch = evaluation.first_batch(part)
    return gradient_flow.norms(part, batch, [part.create_state()])[0]


def test_the_whole_gradient_arrives_through_shortcuts_and_none_without(one_stage):
    stacks = gradient_flow.stacks(one_stage)
    residual = _norms(stacks["residual"])
    assert residual[0] > 0
    np.testing.assert_allclose(residual, residual[-1], rtol=1e-5)
    np.testing.assert_array_equal(_norms(stacks["plain"])[:-1], 0)


def test_the_last_norm_is_that_of_the_classifiers_gradient(small_config):
    """By hand: (softmax - target) W^T / examples, spread evenly over the pixels."""
    part = experiment.build(small_config)
    batch, state = evaluation.first_batch(part), part.create_state()
    logits, _ = apply(
        part.model,
        {"params": state.params, "batch_stats": state.batch_stats},
        batch.images,
        train=True,
        mutable=["batch_stats"],
    )
    error = np.asarray(jax.nn.softmax(logits) - batch.targets) / len(logits)
    by_mean = error @ np.asarray(state.params["head"]["linear"]["kernel"]).T
    pixels = (8 // part.model.spec.total_stride) ** 2
    expected = np.linalg.norm(by_mean) / np.sqrt(pixels)
    result = gradient_flow.norms(part, batch, [state, state])
    assert result.shape == (2, 4)
    np.testing.assert_allclose(result[:, -1], expected, rtol=1e-5)


def test_every_form_has_the_same_gradients(one_stage):
    one_stage.model.name = "dresnetv2_18"
    one_stage.model.zero_last = False
    one_stage.model.connections.projection = "none"
    result = {}
    for form in ("folded", "stacked"):
        config = copy.deepcopy(one_stage)
        config.model.connections.form = form
        result[form] = _norms(experiment.build(config))
    np.testing.assert_allclose(result["stacked"], result["folded"], rtol=1e-4)


@pytest.mark.parametrize("name", ["cnn18", "dcnn18", "dssresnet18", "dresnet56"])
def test_stacks_differ_in_what_joins_their_blocks(small_config, name):
    small_config.model.name = name
    small_config.model.blocks_per_stage = (1, 1, 1)
    specs = {
        stack: part.model.spec
        for stack, part in gradient_flow.stacks(small_config).items()
    }
    own = {"cnn18": "identity", "dcnn18": "identity", "dresnet56": "pad"}
    shortcuts = [spec.shortcut for spec in specs.values()]
    assert shortcuts == ["none", *2 * [own.get(name, "bare")]]
    edges = [len(spec.connections.topology.edges) for spec in specs.values()]
    assert edges == [0, 0, 1]
