"""Every form of the weighted sum agrees with the reference, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dresnet_jax.connections import weighted_sum
from dresnet_jax.connections.outputs import BlockOutputs, average_pool, rms_normalised

FAST_FORMS = sorted(set(weighted_sum.FORMS) - {"reference"})


def random_inputs(
    seed, sides, side, channels, bias=True, per_channel=False, project=True
):
    """Arguments of a form: sources of the given sides, read at `side`."""
    random = np.random.RandomState(seed)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    source_channels = random.randint(1, 9, size=len(sides))
    if not project:
        source_channels[:] = channels
    arrays = [normal(2, s, s, c) for s, c in zip(sides, source_channels, strict=True)]
    arrays.append(normal(2, side, side, channels))
    gates = normal(len(sides), channels) if per_channel else normal(len(sides))
    kernels = [normal(c, channels) / np.float32(np.sqrt(c)) for c in source_channels]
    projections = [{"kernel": kernel} if project else {} for kernel in kernels]
    if project and bias:
        projections = [one | {"bias": normal(channels)} for one in projections]
    return arrays, gates, projections


def outputs_of(arrays, **options):
    """The arrays as y_0, y_1, ..., of which the last is the base."""
    outputs = BlockOutputs(arrays[0], **options)
    outputs.extend(arrays[1:])
    return outputs


def weighted(form, arrays, *parameters):
    """x_i, where all arrays but the last are sources."""
    return form(outputs_of(arrays), range(len(arrays) - 1), *parameters)


def value_and_gradients(form, inputs):
    """The form's output, and the gradients of a random projection of it."""
    shape = inputs[0][-1].shape
    weights = jnp.asarray(np.random.RandomState(1).standard_normal(shape), jnp.float32)

    def loss(inputs):
        output = weighted(form, *inputs)
        return (output * weights).sum(), output

    return jax.jit(jax.grad(loss, has_aux=True))(inputs)


def assert_agree(result, expected, rtol):
    """Each array differs by at most rtol of the largest value in it.

    Or of the inputs' scale, 1: a gradient that is a sum may cancel to less.
    """
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
        assert error <= rtol * max(1, np.abs(b).max())


@pytest.mark.parametrize("name", FAST_FORMS)
@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**31 - 1),
    side=st.integers(1, 4),
    extra=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    channels=st.integers(1, 6),
    bias=st.booleans(),
    per_channel=st.booleans(),
    project=st.booleans(),
)
def test_agrees_with_reference(name, side, extra, **options):
    sides = [side + more for more in extra]
    inputs = random_inputs(sides=sides, side=side, **options)
    assert_agree(
        value_and_gradients(weighted_sum.FORMS[name], inputs),
        value_and_gradients(weighted_sum.reference, inputs),
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", FAST_FORMS)
def test_agrees_with_reference_in_bfloat16_to_its_precision(name):
    arrays, *parameters = random_inputs(0, [8, 4, 4], 4, 16)
    exact = weighted(weighted_sum.reference, arrays, *parameters)
    low = [array.astype(jnp.bfloat16) for array in arrays]
    result = weighted(weighted_sum.FORMS[name], low, *parameters)
    assert result.dtype == jnp.bfloat16
    assert_agree(result.astype(jnp.float32), exact, rtol=0.03)


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("name", weighted_sum.FORMS)
def test_closed_gates_leave_the_base_as_it_is(name, project):
    arrays, gates, projections = random_inputs(0, [8, 4], 4, 3, project=project)
    closed = jnp.zeros_like(gates)
    result = weighted(weighted_sum.FORMS[name], arrays, closed, projections)
    np.testing.assert_array_equal(result, arrays[-1])


@pytest.mark.parametrize("name", weighted_sum.FORMS)
def test_no_sources_leave_the_base_as_it_is(name):
    base = jnp.ones((2, 4, 4, 3))
    result = weighted(weighted_sum.FORMS[name], [base], jnp.zeros(0), [])
    np.testing.assert_array_equal(result, base)


def test_reference_is_the_formula():
    arrays, gates, projections = random_inputs(0, [4], 2, 3)
    result = weighted(weighted_sum.reference, arrays, gates, projections)
    (source, base), (projection,) = arrays, projections
    kernel, bias = map(np.asarray, (projection["kernel"], projection["bias"]))
    for row, column in np.ndindex(2, 2):
        window = source[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        projected = np.asarray(window) @ kernel + bias
        expected = base[:, row, column] + gates[0] * projected.mean(axis=(1, 2))
        np.testing.assert_allclose(result[:, row, column], expected, rtol=1e-5)


@pytest.mark.parametrize("name", weighted_sum.FORMS)
def test_wrong_shapes_are_refused(name):
    arrays, gates, projections = random_inputs(0, [4, 4], 4, 3)
    form = weighted_sum.FORMS[name]
    for wrong in (
        (gates[:1], projections),
        (gates, projections[:1]),
        (gates, [p | {"kernel": p["kernel"][:, :2]} for p in projections]),
        (gates, [{}, {}]),
    ):
        with pytest.raises((AssertionError, ValueError)):
            weighted(form, arrays, *wrong)


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
    result = average_pool(jnp.asarray(images, jnp.float32), after)
    expected = np.stack([adaptive_average(image, after) for image in images])
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


def test_average_pool_refuses_to_enlarge():
    with pytest.raises(ValueError, match="larger"):
        average_pool(jnp.ones((1, 4, 4, 1)), (8, 8))


@pytest.mark.parametrize("sides", [(28, 14, 7, 4), (32, 16, 8, 4), (15, 8, 4, 2)])
def test_outputs_pooled_step_by_step_equal_outputs_pooled_at_once(sides):
    random = np.random.RandomState(0)
    arrays = [
        jnp.asarray(random.standard_normal((1, side, side, 2)), jnp.float32)
        for side in (sides[0], *sides)
    ]
    outputs = outputs_of(arrays)
    for n, side in enumerate(sides):
        blocks = tuple(range(n + 2))
        result = outputs.pooled(blocks, (side, side))
        at_once = [average_pool(arrays[k], (side, side)) for k in blocks]
        np.testing.assert_allclose(result, np.concatenate(at_once, axis=-1), atol=1e-6)
        assert outputs.pooled(blocks, (side, side)) is result


def test_pooling_starts_from_what_is_pooled_already():
    image = jnp.ones((1, 16, 16, 2))

    def pool_operations(sizes):
        def pooled(image):
            outputs = outputs_of([image, image])
            return [outputs.pooled((0, 1), (side, side)) for side in sizes]

        return str(jax.make_jaxpr(pooled)(image)).count("reduce_window")

    assert pool_operations([8]) == 2
    assert pool_operations([8, 4]) == 3


def test_normalised_sources_have_a_mean_square_of_1_and_the_base_is_left():
    images = np.random.RandomState(0).standard_normal((2, 4, 4, 8)) * 5
    outputs = outputs_of([jnp.asarray(images, jnp.float32)], normalise=True)
    np.testing.assert_allclose((outputs[0] ** 2).mean(axis=-1), 1.0, rtol=1e-4)
    np.testing.assert_array_equal(outputs.last, images.astype(np.float32))
    pooled = average_pool(outputs[0], (2, 2))
    np.testing.assert_array_equal(outputs.pooled((0,), (2, 2)), pooled)


def test_normalising_zeros_keeps_the_gradient_finite():
    gradient = jax.grad(lambda x: rms_normalised(x).sum())
    assert np.isfinite(gradient(jnp.zeros((1, 1, 1, 4)))).all()
