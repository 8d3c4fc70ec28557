"""The operations of RandAugment do what their names say, to colour and grey."""

import numpy as np
import pytest

from dresnet_jax.data import images, rand_augment
from tests.data import archives
from tests.data.archives import GREY, PHOTO


@pytest.mark.parametrize("name", rand_augment.OPERATIONS)
@pytest.mark.parametrize("image", [PHOTO, GREY], ids=["colour", "grey"])
def test_operations_keep_the_shape_and_are_nothing_at_strength_0(name, image):
    operation = rand_augment.OPERATIONS[name]
    for sign in (-1, 1):
        result = np.asarray(operation(image, 0.9, sign))
        assert result.shape == np.asarray(image).shape
        assert result.dtype == np.uint8
    changed = not np.array_equal(result, np.asarray(image))
    colours_only = name == "color" and image is GREY
    assert changed == (name != "identity" and not colours_only)
    if name not in ("auto_contrast", "equalize", "solarize"):
        still = np.asarray(operation(image, 0.0, 1)).astype(int)
        assert np.abs(still - np.asarray(image)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_draws_its_layers(channels):
    pixels = images.decode(archives.encoded(PHOTO), channels)
    assert rand_augment.apply(np.random.default_rng(0), pixels, 0, 9) is pixels
    result = [
        rand_augment.apply(np.random.default_rng(seed), pixels, 2, 9)
        for seed in range(8)
    ]
    assert all(image.shape == pixels.shape for image in result)
    assert len({image.tobytes() for image in result}) > 4
