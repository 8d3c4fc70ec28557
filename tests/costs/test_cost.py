"""Costs are the compiler's counts, and timed programs take turns."""

import jax
import jax.numpy as jnp

from dresnet_jax.costs import cost
from dresnet_jax.models import counting


def test_a_matrix_product_costs_what_it_should():
    a = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    b = jax.ShapeDtypeStruct((32, 128), jnp.float32)
    flops = counting.flops(jnp.matmul, a, b)
    result = cost.of(jax.jit(jnp.matmul).lower(a, b).compile(), flops)
    assert result.flops == 2 * 64 * 32 * 128
    assert result.argument_bytes == 4 * (64 * 32 + 32 * 128)
    assert result.bytes_accessed == 4 * (64 * 32 + 32 * 128 + 64 * 128)


def test_timed_programs_take_turns():
    calls = []
    programs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = cost.interleaved_seconds(programs, runs=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
