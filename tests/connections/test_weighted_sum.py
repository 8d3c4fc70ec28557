"""Every form of the weighted sum agrees with the reference, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dresnet_jax.connections import weighted_sum

FAST_FORMS = sorted(set(weighted_sum.FORMS) - {"reference"})


def random_inputs(seed, sides, side, channels, bias, per_channel=False, batch=2):
    """Arguments of a form: sources of the given sides, read at `side`."""
    random = np.random.RandomState(seed)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    source_channels = random.randint(1, 9, size=len(sides))
    return (
        normal(batch, side, side, channels),
        [normal(batch, s, s, c) for s, c in zip(sides, source_channels, strict=True)],
        normal(len(sides), channels) if per_channel else normal(len(sides)),
        [normal(c, channels) / np.float32(np.sqrt(c)) for c in source_channels],
        [normal(channels) for _ in sides] if bias else None,
    )


def value_and_gradients(form, inputs):
    """The form's output, and the gradients of a random projection of it."""
    weights = jnp.asarray(
        np.random.RandomState(1).standard_normal(inputs[0].shape), jnp.float32
    )

    def loss(inputs):
        output = form(*inputs)
        return (output * weights).sum(), output

    return jax.grad(loss, has_aux=True)(inputs)


def assert_agree(found, expected, rtol):
    """Each array differs by at most rtol of the largest value in it."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
        assert error <= rtol * np.abs(b).max()


@pytest.mark.parametrize("name", FAST_FORMS)
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    side=st.integers(1, 4),
    extra=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    channels=st.integers(1, 6),
    bias=st.booleans(),
    per_channel=st.booleans(),
)
def test_agrees_with_reference(name, seed, side, extra, channels, bias, per_channel):
    sides = [side + more for more in extra]
    inputs = random_inputs(seed, sides, side, channels, bias, per_channel)
    assert_agree(
        value_and_gradients(weighted_sum.FORMS[name].function, inputs),
        value_and_gradients(weighted_sum.reference, inputs),
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", FAST_FORMS)
def test_agrees_with_reference_in_bfloat16_to_its_precision(name):
    base, sources, *parameters = random_inputs(0, [8, 4, 4], 4, 16, bias=True)
    exact = weighted_sum.reference(base, sources, *parameters)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (base, sources))
    found = weighted_sum.FORMS[name].function(*low, *parameters)
    assert found.dtype == jnp.bfloat16
    assert_agree(found.astype(jnp.float32), exact, rtol=0.03)


@pytest.mark.parametrize("name", weighted_sum.FORMS)
def test_closed_gates_leave_the_base_as_it_is(name):
    base, sources, gates, *rest = random_inputs(0, [8, 4], 4, 3, bias=True)
    form = weighted_sum.FORMS[name].function
    found = form(base, sources, jnp.zeros_like(gates), *rest)
    np.testing.assert_array_equal(found, base)


@pytest.mark.parametrize("name", weighted_sum.FORMS)
def test_no_sources_leave_the_base_as_it_is(name):
    base = jnp.ones((2, 4, 4, 3))
    form = weighted_sum.FORMS[name].function
    np.testing.assert_array_equal(form(base, [], jnp.zeros(0), [], None), base)


def test_reference_is_the_formula():
    base, (source,), gates, (kernel,), (bias,) = random_inputs(0, [4], 2, 3, bias=True)
    found = weighted_sum.reference(base, [source], gates, [kernel], [bias])
    for row, column in np.ndindex(2, 2):
        window = source[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        projected = np.asarray(window) @ np.asarray(kernel) + np.asarray(bias)
        expected = base[:, row, column] + gates[0] * projected.mean(axis=(1, 2))
        np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-5)


@pytest.mark.parametrize("name", weighted_sum.FORMS)
def test_wrong_shapes_are_refused(name):
    base, sources, gates, kernels, biases = random_inputs(0, [4, 4], 4, 3, bias=True)
    form = weighted_sum.FORMS[name].function
    with pytest.raises((AssertionError, ValueError)):
        form(base, sources, gates[:1], kernels, biases)
    with pytest.raises((AssertionError, ValueError)):
        form(base, sources, gates, kernels[:1], biases)
    with pytest.raises((AssertionError, ValueError)):
        form(base, sources, gates, [k[:, :2] for k in kernels], biases)


def adaptive_average(image, size):
    """PyTorch's adaptive average pooling of one [height, width, channels] image."""
    pooled = np.zeros((*size, image.shape[2]))
    for index in np.ndindex(*size):
        window = image
        for axis, (j, n, m) in enumerate(zip(index, image.shape, size, strict=False)):
            positions = np.arange(j * n // m, -(-(j + 1) * n // m))
            window = np.take(window, positions, axis=axis)
        pooled[index] = window.mean(axis=(0, 1))
    return pooled


@pytest.mark.parametrize(
    ("before", "after"),
    [((8, 8), (4, 4)), ((7, 7), (4, 4)), ((28, 14), (4, 7)), ((5, 3), (1, 1))],
)
def test_average_pool_is_adaptive(before, after):
    images = np.random.RandomState(0).standard_normal((2, *before, 3))
    found = weighted_sum.average_pool(jnp.asarray(images, jnp.float32), after)
    expected = np.stack([adaptive_average(image, after) for image in images])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_average_pool_refuses_to_enlarge():
    with pytest.raises(ValueError, match="larger"):
        weighted_sum.average_pool(jnp.ones((1, 4, 4, 1)), (8, 8))


@pytest.mark.parametrize("sides", [(28, 14, 7, 4), (32, 16, 8, 4), (15, 8, 4, 2)])
def test_outputs_pooled_step_by_step_equal_outputs_pooled_at_once(sides):
    image = np.random.RandomState(0).standard_normal((1, sides[0], sides[0], 2))
    outputs = weighted_sum.BlockOutputs(jnp.asarray(image, jnp.float32))
    at_once = functools.partial(weighted_sum.average_pool, outputs[0])
    for side in sides:
        found = outputs.pooled(0, (side, side))
        np.testing.assert_allclose(found, at_once((side, side)), atol=1e-6)
        assert outputs.pooled(0, (side, side)) is found


def test_normalised_sources_have_a_mean_square_of_1_and_the_base_is_left():
    images = np.random.RandomState(0).standard_normal((2, 4, 4, 8)) * 5
    outputs = weighted_sum.BlockOutputs(
        jnp.asarray(images, jnp.float32), normalise=True
    )
    np.testing.assert_allclose((outputs[0] ** 2).mean(axis=-1), 1.0, rtol=1e-4)
    np.testing.assert_array_equal(outputs.last, images.astype(np.float32))
    pooled = weighted_sum.average_pool(outputs[0], (2, 2))
    np.testing.assert_array_equal(outputs.pooled(0, (2, 2)), pooled)


def test_normalising_zeros_keeps_the_gradient_finite():
    gradient = jax.grad(lambda x: weighted_sum.rms_normalised(x).sum())
    assert np.isfinite(gradient(jnp.zeros((1, 1, 1, 4)))).all()
