"""Ratios to the plain network, and all turns of a loop."""

import jax.numpy as jnp
import pytest

from benchmarks.denseformer import DepthWeightedAverage
from dresnet_jax.costs import connection_costs, tables
from dresnet_jax.costs.connection_costs import Subject
from dresnet_jax.errors import UserError


def test_the_plain_network_is_the_unit(tiny_images_config):
    subject = Subject(tiny_images_config, ["folded"])
    rows = connection_costs.measure([subject], runs=2)
    assert [row.form for row in rows] == ["none", "folded"]
    assert rows[0].flops_ratio == rows[0].temp_ratio == rows[0].step_ratio == 1
    assert 1 < rows[1].flops_ratio < 1.5
    assert rows[1].saved_bytes > rows[0].saved_bytes
    assert "forward, connections: dot_general" in rows[1].traffic
    table = tables.connection_cost_table(rows, with_traffic=True)
    assert "MB read and written by" in table


def test_others_are_compared_with_their_own_plain_network(tiny_images_config):
    subject = Subject(tiny_images_config, ["folded"])
    steps = {"none": lambda: jnp.ones(()), "per edge": lambda: jnp.ones(())}
    rows = connection_costs.measure([subject], 2, {"peer": steps})
    peers = [row for row in rows if row.model == "peer"]
    assert [(row.form, row.flops_ratio) for row in peers] == [
        ("none", None),
        ("per edge", None),
    ]
    assert peers[0].step_ratio == 1


def test_a_scheme_of_others_has_parameters_of_its_own(tiny_images_config):
    (subject,) = connection_costs.subjects(
        tiny_images_config,
        None,
        ["folded"],
        ["3"],
        "none",
        {"average": DepthWeightedAverage},
    )
    params = {
        name: part.create_state(abstract=True).params["connections"]["block_3"]
        for name, part in subject.experiments().items()
        if name != connection_costs.PLAIN
    }
    assert set(params["folded"]) == {"gate_weights"}
    assert params["average"].shape == (3,)


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["4", "5"])
def test_all_turns_of_a_loop_are_counted(tiny_images_config, depth):
    """Against the same stage with no loop, which the compiler counts itself."""
    (subject,) = connection_costs.subjects(
        tiny_images_config, None, ["stacked"], [depth], "none", {}
    )
    connections = subject.config.model.connections
    looped = connection_costs.measure([subject], runs=1)[-1]
    connections.unroll = int(depth)
    unrolled = connection_costs.measure([subject], runs=1)[-1]
    assert looped.form == unrolled.form == "stacked"
    assert looped.flops_ratio == pytest.approx(unrolled.flops_ratio, rel=0.15)


@pytest.mark.slow
def test_what_a_stage_saves_grows_by_the_same_with_each_block(tiny_images_config):
    forms = ["folded", "stacked"]
    subjects = connection_costs.subjects(
        tiny_images_config, None, forms, ["3", "4", "5"], "none", {}
    )
    rows = connection_costs.measure(subjects, runs=1)
    # Sides of 16 and 4 channels: one output a block, of 16 images of float32.
    output = 16 * 16 * 16 * 4 * 4
    lines = {
        form: tables.saved_memory_line([row for row in rows if row.form == form])
        for form in ("none, scanned", "stacked", "folded")
    }
    for form in ("none, scanned", "stacked"):
        assert lines[form].slope == pytest.approx(output, rel=0.01)
        assert lines[form].residual < 0.001
    assert lines["folded"].slope > 5 * output
    assert "saved for the backward pass, stacked" in tables.connection_cost_table(rows)


@pytest.mark.parametrize(
    ("name", "forms", "message"),
    [
        ("resnet18", ["folded"], "resnet18 has no connections to measure"),
        ("dresnet18", [], "No form is named"),
        ("dresnet18", ["foldet"], "Did you mean 'folded'"),
        ("dresnet18_seed", ["stacked"], "cannot express projection 'per_edge'"),
    ],
)
def test_wrong_values_are_refused(tiny_images_config, name, forms, message):
    subjects = connection_costs.subjects(tiny_images_config, name, forms, [], "", {})
    with pytest.raises(UserError, match=message):
        connection_costs.measure(subjects, runs=1)


@pytest.mark.parametrize("depth", ["2", "x", "-8", "8.0", ""])
def test_a_depth_that_is_none_is_refused(tiny_images_config, depth):
    with pytest.raises(UserError, match=f"Depth '{depth}' must be a whole number"):
        connection_costs.subjects(tiny_images_config, None, None, [depth], "none", {})
