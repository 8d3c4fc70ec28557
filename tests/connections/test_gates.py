"""The gate functions keep their range, and their inverses invert them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax.connections import gates
from dresnet_jax.errors import UserError

BOUNDED = ("sigmoid", "gauss", "hard_sigmoid", "softmax")
FREE = [name for name, gate in gates.GATES.items() if not gate.compares_sources]


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("value", [1e-4, 0.018, 0.5, 0.999])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 10.0])
def test_inverse_gives_the_weight_of_a_value(name, value, sharpness):
    gate = gates.GATES[name]
    weight = gates.starting_weight(gate, value, sharpness)
    result = gate.function(jnp.asarray([weight]), jnp.asarray([sharpness]))
    np.testing.assert_allclose(result, [value], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_gates_stay_between_0_and_1(name):
    weights = jnp.linspace(-50, 50, 201)
    values = gates.GATES[name].function(weights, jnp.ones(()))
    assert values.min() >= 0
    assert values.max() <= 1


def test_sharpness_narrows_the_gauss_gate():
    weights = jnp.asarray([0.5, 0.5])
    wide, narrow = gates.GATES["gauss"].function(weights, jnp.asarray([0.1, 10.0]))
    np.testing.assert_allclose(wide, np.exp(-0.025), rtol=1e-6)
    np.testing.assert_allclose(narrow, np.exp(-2.5), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, float("nan"), None])
@pytest.mark.parametrize("name", gates.GATES)
def test_a_value_outside_0_to_1_is_refused(name, value):
    with pytest.raises(UserError, match=r"outside \(0, 1\)"):
        gates.starting_weight(gates.GATES[name], value, 1.0)


@pytest.mark.parametrize("sharpness", [1e-3, 0.1, 1.0, 30.0])
def test_sharpness_comes_back_from_its_parameter(sharpness):
    raw = jnp.asarray(gates.positive_inverse(sharpness))
    np.testing.assert_allclose(gates.positive(raw), sharpness, rtol=1e-4)


@pytest.mark.parametrize("raw", [-20.0, 0.0, 20.0])
def test_sharpness_is_positive_whatever_training_does(raw):
    assert gates.positive(jnp.asarray(raw)) > 0
    assert jax.grad(gates.positive)(jnp.asarray(raw)) > 0


@pytest.mark.parametrize("sharpness", [0.0, -1.0, float("nan"), float("inf")])
def test_sharpness_that_is_not_above_0_is_refused(sharpness):
    with pytest.raises(UserError, match="must be a number above 0"):
        gates.positive_inverse(sharpness)


def test_softmax_values_of_a_block_sum_to_1():
    weights = jnp.asarray([[0.0, -3.0], [1.0, 2.0], [-1.0, 4.0]])
    values = gates.GATES["softmax"].function(weights, jnp.ones(()))
    np.testing.assert_allclose(values.sum(axis=0), 1.0, rtol=1e-6)


def test_softmax_may_leave_all_closed_and_has_the_values_of_a_sigmoid_for_one():
    choose = gates.GATES["softmax"].or_none
    some = choose(jnp.asarray([[0.0, -90.0], [1.0, -90.0]]), jnp.ones(()))
    expected = np.asarray([[1.0, 0.0], [np.e, 0.0]]) / np.asarray([2 + np.e, 1.0])
    np.testing.assert_allclose(some, expected, rtol=1e-6, atol=1e-20)
    weights = jnp.linspace(-5, 5, 11)[None]
    np.testing.assert_allclose(
        choose(weights, jnp.ones(())), jax.nn.sigmoid(weights), rtol=1e-6
    )


@pytest.mark.parametrize(("weight", "value"), [(-4.0, 0.0), (4.0, 1.0), (1.5, 0.75)])
def test_a_hard_sigmoid_closes_wholly_and_can_open_again(weight, value):
    gate = gates.GATES["hard_sigmoid"].function
    value, gradient = jax.value_and_grad(gate)(jnp.asarray(weight), jnp.ones(()))
    assert float(value) == value
    assert float(gradient) == pytest.approx(1 / 6)
