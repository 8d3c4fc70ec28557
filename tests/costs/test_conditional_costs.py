"""What conditional paths save is counted by what the gates let through."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax.costs import conditional_costs, plots, tables
from dresnet_jax.errors import UserError
from dresnet_jax.figures import pictures
from dresnet_jax.training import experiment


@pytest.fixture
def gated_config(tiny_images_config):
    config = tiny_images_config
    config.model.name = "resnet18"
    config.model.blocks_per_stage = (1,)
    config.model.conditional.target_rate = 0.5
    return config


def test_a_fresh_network_is_measured_at_each_rate(gated_config, tmp_path):
    network = conditional_costs.fresh(gated_config, [1.0, 0.5])
    rows = {row.rate: row for row in conditional_costs.measure(network, runs=2)}
    assert list(rows) == [1.0, 0.5]
    everyone, half = rows[1.0], rows[0.5]
    assert everyone.open_share == 1
    assert everyone.realised is None
    # The gates are all that is added.
    assert -0.05 < everyone.flops_saving == everyone.batch_flops_saving < 0
    assert 0.2 < half.open_share < 0.8
    assert 0 < half.batch_flops_saving <= half.flops_saving < 0.6
    assert half.realised == half.time_saving / half.flops_saving
    lines = tables.conditional_cost_table(list(rows.values())).splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["1", "0.5"]
    picture = tmp_path / "saved.png"
    pictures.save(plots.conditional_costs_bars(list(rows.values())), picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_blocks_operations_grow_with_the_batch(gated_config):
    network = conditional_costs.fresh(gated_config, [0.5])
    variables, images = network.variables[0.5], network.batches[0]
    whole, half = (
        conditional_costs.block_flops(network.model, variables, given)
        for given in (images, images[: len(images) // 2])
    )
    assert list(whole) == [1]
    np.testing.assert_allclose(half[1] / whole[1], 0.5, rtol=0.01)


def test_a_run_is_measured_on_its_validation_split(gated_config):
    exp = experiment.build(gated_config)
    state = exp.create_state()
    network = conditional_costs.trained(exp, state, batch_size=4)
    assert list(network.variables) == [None]
    assert [images.shape for images in network.batches] == [(4, 16, 16, 3)] * 3
    assert not jnp.array_equal(*network.batches[:2])
    (row,) = conditional_costs.measure(network, runs=1)
    table = tables.conditional_cost_table([dataclasses.replace(row, rate=None)])
    assert "the run" in table


def test_a_small_split_is_measured_whole(gated_config):
    gated_config.data.validation_examples = 8
    exp = experiment.build(gated_config)
    network = conditional_costs.trained(exp, exp.create_state(), batch_size=None)
    assert [images.shape for images in network.batches] == [(8, 16, 16, 3)]


def test_what_cannot_be_measured_is_refused(gated_config):
    gated_config.data.validation_examples = 8
    exp = experiment.build(gated_config)
    state = exp.create_state(abstract=True)
    with pytest.raises(UserError, match=r"has \d+ images: give a --batch_size"):
        conditional_costs.trained(exp, state, batch_size=16)
    for rate in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match=rf"--rates: {rate} must be in \(0, 1\]"):
            conditional_costs.fresh(gated_config, [rate])
    gated_config.model.conditional.target_rate = None
    ungated = experiment.build(gated_config)
    with pytest.raises(UserError, match="has no conditional paths"):
        conditional_costs.trained(ungated, state, batch_size=4)
