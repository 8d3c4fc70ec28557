"""Costs are the compiler's counts, and timed programs take turns."""

import jax
import jax.numpy as jnp
import pytest

from dresnet_jax.analysis import connection_costs, cost
from dresnet_jax.errors import UserError


def test_a_matrix_product_costs_what_it_should():
    a = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    b = jax.ShapeDtypeStruct((32, 128), jnp.float32)
    found = cost.of(jax.jit(jnp.matmul).lower(a, b).compile())
    assert found.flops == 2 * 64 * 32 * 128
    assert found.argument_bytes == 4 * (64 * 32 + 32 * 128)
    assert found.bytes_accessed == 4 * (64 * 32 + 32 * 128 + 64 * 128)


def test_timed_programs_take_turns():
    calls = []
    programs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = cost.interleaved_seconds(programs, runs=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_the_plain_network_is_the_unit(tiny_images_config):
    rows = connection_costs.measure(tiny_images_config, ["folded"], runs=2)
    assert [row.form for row in rows] == ["none", "folded"]
    assert rows[0].flops_ratio == rows[0].temp_ratio == rows[0].step_ratio == 1
    assert 1 < rows[1].flops_ratio < 1.5


@pytest.mark.parametrize(
    ("name", "forms", "message"),
    [
        ("resnet18", ["folded"], "resnet18 has no connections to measure"),
        ("dresnet18", [], "No form is named"),
        ("dresnet18", ["foldet"], "Did you mean 'folded'"),
    ],
)
def test_wrong_values_are_refused(tiny_images_config, name, forms, message):
    tiny_images_config.model.name = name
    with pytest.raises(UserError, match=message):
        connection_costs.measure(tiny_images_config, forms, runs=1)
