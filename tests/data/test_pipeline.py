"""A batch is a pure function of (seed, step); an epoch holds each example once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax.data import augment, pipeline
from dresnet_jax.data.sources import Arrays
from dresnet_jax.data.views import View
from dresnet_jax.errors import UserError

EXAMPLES = 20


def recipe(**fields):
    defaults = {
        "batch_size": 6,
        "mean": (0.5,),
        "std": (0.25,),
        "crop_padding": 1,
        "flip": True,
        "cut_out": 0,
        "mix_up": 0.0,
        "cut_mix": 0.0,
        "num_classes": EXAMPLES,
        "view": View(size=4, channels=1, fixed_size=True),
        "skip_corrupt": False,
    }
    return pipeline.Recipe(**(defaults | fields))


def split():
    """Images that name their example in every pixel."""
    labels = np.arange(EXAMPLES, dtype=np.int32)
    images = np.broadcast_to(labels[:, None, None, None], (EXAMPLES, 4, 4, 1))
    return Arrays(images.astype(np.uint8), labels)


@functools.partial(jax.jit, static_argnums=0)
def batch_of(made, images, labels, order, key, step):
    examples = pipeline.take(made, images, labels, order, step)
    return pipeline.train_batch(made, *examples, key, step)


def batch(seed, step, **fields):
    made = recipe(**fields)
    epoch = step // made.steps_per_epoch(EXAMPLES)
    order = jnp.asarray(pipeline.epoch_order(seed, epoch, EXAMPLES))
    data = split()
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    return batch_of(made, images, labels, order, jax.random.key(seed), step)


def test_the_same_seed_and_step_give_the_same_bits():
    jax.tree.map(np.testing.assert_array_equal, batch(0, 5), batch(0, 5))


@pytest.mark.parametrize(("seed", "step"), [(1, 5), (0, 6), (0, 8)])
def test_another_seed_step_or_epoch_gives_other_images(seed, step):
    assert not np.array_equal(batch(0, 5).images, batch(seed, step).images)


def test_an_epoch_holds_no_example_twice():
    for epoch in (0, 1):
        labels = [batch(3, 3 * epoch + step).labels for step in range(3)]
        assert len(np.unique(labels)) == 18


def test_epochs_differ_in_order_and_in_what_is_left_over():
    orders = [pipeline.epoch_order(0, e, EXAMPLES) for e in range(100)]
    assert len({tuple(np.asarray(order)) for order in orders}) == 100
    assert {int(i) for order in orders for i in order[18:]} == set(range(EXAMPLES))


def test_images_belong_to_their_labels_and_are_normalised():
    result = batch(0, 2, crop_padding=0, flip=False)
    expected = (np.asarray(result.labels) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(result.images[:, 0, 0, 0], expected, rtol=1e-5)
    assert result.images.dtype == jnp.float32
    assert result.mask.all()


@pytest.mark.parametrize("batch_size", [0, -1, 21])
def test_a_batch_that_is_never_full_is_refused(batch_size):
    with pytest.raises(UserError, match="between 1 and the 20 training examples"):
        recipe(batch_size=batch_size).steps_per_epoch(EXAMPLES)


def test_flips_are_their_own_inverse_and_hit_about_half():
    images = jnp.asarray(np.random.RandomState(0).standard_normal((200, 3, 4, 2)))
    key = jax.random.key(0)
    once = augment.random_flip(key, images)
    np.testing.assert_array_equal(augment.random_flip(key, once), images)
    flipped = (once != images).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(once[flipped], images[flipped, :, ::-1])
    assert 70 < flipped.sum() < 130


def test_crops_are_windows_of_the_padded_image():
    images = jnp.asarray(np.random.RandomState(0).uniform(1, 2, (50, 4, 4, 1)))
    crops = augment.random_crop(jax.random.key(0), images, 2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = set()
    for image, crop in zip(padded, crops, strict=True):
        matches = [
            (row, column)
            for row, column in np.ndindex(5, 5)
            if np.array_equal(image[row : row + 4, column : column + 4], crop)
        ]
        assert len(matches) == 1
        offsets.add(matches[0])
    assert len(offsets) > 10


def test_no_padding_means_no_crop():
    images = jnp.ones((2, 4, 4, 1))
    assert augment.random_crop(jax.random.key(0), images, 0) is images


def test_cut_out_sets_a_square_to_one_colour():
    images = jnp.full((200, 8, 8, 2), 9, jnp.uint8)
    result = np.asarray(augment.cut_out(jax.random.key(0), images, 4, (0, 1)))
    assert set(np.unique(result[..., 0])) == {0, 9}
    np.testing.assert_array_equal(result[..., 0] == 0, result[..., 1] == 1)
    for image in result[..., 0]:
        rows, columns = (np.unique(index) for index in np.nonzero(image == 0))
        # A whole box, of side 4 unless the border cuts it off.
        assert (image == 0).sum() == len(rows) * len(columns)
        assert 2 <= len(rows) <= 4
        assert 2 <= len(columns) <= 4
    assert (result[..., 0] == 0).sum(axis=(1, 2)).max() == 16


def examples():
    """A batch of 6 images, each of one value, and their one-hot targets."""
    values = jnp.arange(6.0)
    images = jnp.broadcast_to(values[:, None, None, None], (6, 8, 8, 1))
    return images, jax.nn.one_hot(jnp.arange(6), 6)


@pytest.mark.parametrize("seed", range(5))
def test_mix_up_mixes_images_and_targets_alike(seed):
    images, targets = augment.mix_up(jax.random.key(seed), *examples(), alpha=1.0)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    # An image's value is the mean of the labels, weighted by its target.
    np.testing.assert_allclose(images[:, 3, 5, 0], targets @ jnp.arange(6.0), atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_cut_mix_weighs_targets_by_the_pasted_area(seed):
    images, targets = augment.cut_mix(jax.random.key(seed), *examples(), alpha=1.0)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    for i, image in enumerate(np.asarray(images[..., 0])):
        values, counts = np.unique(image, return_counts=True)
        expected = np.zeros(6)
        expected[values.astype(int)] = counts / 64
        np.testing.assert_allclose(targets[i], expected, atol=1e-6)
        rows, columns = (np.unique(index) for index in np.nonzero(image != i))
        assert (image != i).sum() == len(rows) * len(columns)


@pytest.mark.parametrize(
    ("fields", "mixes"),
    [({}, False), ({"mix_up": 1.0}, True), ({"cut_mix": 1.0}, True)],
)
def test_mixing_is_off_unless_asked_for(fields, mixes):
    result = batch(0, 4, **fields)
    one_hot = jax.nn.one_hot(result.labels, EXAMPLES)
    assert np.array_equal(result.targets, one_hot) != mixes


def test_with_both_a_coin_picks_one():
    both = [batch(0, step, mix_up=1.0, cut_mix=1.0).targets for step in range(12)]
    up = [batch(0, step, mix_up=1.0).targets for step in range(12)]
    cut = [batch(0, step, cut_mix=1.0).targets for step in range(12)]
    picked = [
        (np.array_equal(b, u), np.array_equal(b, c))
        for b, u, c in zip(both, up, cut, strict=True)
    ]
    assert set(picked) == {(True, False), (False, True)}
