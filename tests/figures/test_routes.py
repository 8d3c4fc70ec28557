"""The weights of mixed blocks by class are those of their images."""

import jax
import numpy as np
import pytest

from dresnet_jax.data import pipeline
from dresnet_jax.errors import UserError
from dresnet_jax.figures import routes
from dresnet_jax.training import experiment
from tests.conftest import apply, run_command


@pytest.fixture
def mixed(small_config):
    small_config.model.update(name="mixed18", blocks_per_stage=(1, 1))
    with small_config.ignore_type():
        small_config.model.mixture.operations = (("deep",), ("none", "conv3", "pool"))
    return small_config


def test_routed_weights_are_averaged_by_class(mixed):
    mixed.model.mixture.weights = "routed"
    exp = experiment.build(mixed)
    state = exp.create_state()
    keys = jax.random.normal(jax.random.key(0), (3, 16))
    state.params["block_2"]["mixture"]["gate_weights"] = keys
    examples = exp.open_splits()["validation"]
    result = routes.by_class(exp, state, examples)
    assert result.keys() == {2}
    # By hand, of all images at once.
    images, labels = np.asarray(examples.images), np.asarray(examples.labels)
    batch = pipeline.make_batch(exp.recipe, images, labels)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    options = {"train": False, "mutable": ["intermediates"]}
    _, made = apply(exp.model, variables, batch.images, **options)
    weights = made["intermediates"]["block_2"]["mixture"]["weights"][0]
    for label in range(10):
        expected = weights[labels == label].mean(axis=0)
        np.testing.assert_allclose(result[2][label], expected, atol=1e-5)
    assert np.ptp(result[2], axis=0).max() > 0.01
    lines = routes.table(exp, result).splitlines()
    assert lines[0].split() == ["block", "2", "none", "conv3", "pool"]
    assert len(lines) == 11
    figure = routes.draw(exp, result)
    assert figure.axes[0].get_title() == "block 2"


def test_weights_of_a_block_are_those_of_every_class(mixed):
    exp = experiment.build(mixed)
    examples = exp.open_splits()["validation"]
    result = routes.by_class(exp, exp.create_state(), examples)
    np.testing.assert_allclose(result[2], np.full((10, 3), 1 / 3), rtol=1e-5)


def test_a_network_without_mixed_blocks_has_no_routes(small_config):
    exp = experiment.build(small_config)
    with pytest.raises(UserError, match="dresnet18 has no block with several"):
        routes.operations(exp)


def test_the_command_needs_a_run(tmp_path):
    picture = tmp_path / "routes.png"
    code, _, errors = run_command("analyze", "routes", f"--out={picture}")
    assert code == 2
    assert errors == "error: --workdir is missing: give the directory of the run.\n"
