"""Datasets are what the catalogue says, and their splits never change."""

import hashlib

import numpy as np
import pytest

from configs import digits, synthetic
from dresnet_jax.data import catalog, lookup, sources
from dresnet_jax.errors import UserError

DIGITS = catalog.DATASETS["digits"]


@pytest.fixture(params=[digits, synthetic], ids=["digits", "synthetic"])
def dataset(request):
    return lookup.from_config(request.param.get_config().data)


def test_splits_have_the_shape_the_catalogue_gives(dataset):
    splits = sources.open_splits(dataset, "")
    for name, examples in dataset.splits.items():
        side = dataset.image_size
        images, labels = splits[name].images, splits[name].labels
        assert images.shape == (examples, side, side, dataset.channels)
        assert images.dtype == np.uint8
        assert labels.shape == (examples,)
        assert labels.dtype == np.int32
        assert set(labels) <= set(range(dataset.num_classes))


def test_digits_statistics_are_those_of_the_catalogue():
    dataset = DIGITS
    pixels = sources.open_splits(dataset, "")["train"].images / 255
    np.testing.assert_allclose(pixels.mean(), dataset.mean[0], atol=5e-5)
    np.testing.assert_allclose(pixels.std(), dataset.std[0], atol=5e-5)


def test_digits_splits_hold_each_example_once():
    splits = sources.open_splits(DIGITS, "")
    assert sum(len(split.labels) for split in splits.values()) == 1797
    images = np.concatenate([split.images for split in splits.values()])
    # All 1,797 images differ.
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797


def test_digits_splits_are_the_same_for_ever():
    labels = sources.open_splits(DIGITS, "")["test"].labels
    digest = hashlib.sha256(labels.tobytes()).hexdigest()
    assert digest.startswith("2173da2326065563")


def test_synthetic_classes_differ_more_than_their_noise():
    dataset = lookup.from_config(synthetic.get_config().data)
    train, test = (sources.open_splits(dataset, "")[name] for name in ("train", "test"))
    means = np.stack([train.images[train.labels == c].mean(axis=0) for c in range(10)])
    distances = ((test.images[:, None] - means) ** 2).mean(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == test.labels).mean() > 0.9


@pytest.mark.parametrize(
    ("make", "field", "value", "message"),
    [
        (digits, "dataset", "digit", "Did you mean 'digits'"),
        (digits, "image_size", 16, "cannot be set for digits"),
        (synthetic, "num_classes", 0, "must be above 0"),
        (synthetic, "num_examples", None, "must be above 0"),
    ],
)
def test_wrong_values_are_refused(make, field, value, message):
    config = make.get_config()
    config.data[field] = value
    with pytest.raises(UserError, match=message):
        lookup.from_config(config.data)


def test_pixels_may_be_normalised_as_weights_from_elsewhere_expect():
    config = synthetic.get_config().data
    config.update(mean=(0.5, 0.5, 0.5), std=(1, 2, 3))
    dataset = lookup.from_config(config)
    assert (dataset.mean, dataset.std) == ((0.5,) * 3, (1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", (0.5,)),
        ("std", (1.0, 1.0, 0.0)),
        ("mean", (0.5, "x", 0.5)),
        ("std", (1.0, 1.0, float("nan"))),
    ],
)
def test_wrong_normalisations_are_refused(field, value):
    config = synthetic.get_config().data
    config[field] = value
    with pytest.raises(UserError, match=rf"data.{field} = .* must be 3 numbers"):
        lookup.from_config(config)
