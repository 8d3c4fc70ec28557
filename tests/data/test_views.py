"""A view is cut out of the image, and the same for the same seed."""

import numpy as np
import pytest

from dresnet_jax.data import images, views
from tests.data import archives
from tests.data.archives import PHOTO


@pytest.mark.parametrize("sides", [(300, 400), (50, 900), (1, 1), (2, 700)])
@pytest.mark.parametrize("min_area", [0.08, 0.5, 1.0])
def test_random_boxes_stay_inside_and_keep_their_area(sides, min_area):
    height, width = sides
    random = np.random.default_rng(0)
    for _ in range(200):
        top, left, box_height, box_width = views.random_box(
            random, height, width, min_area
        )
        assert 0 <= top <= top + box_height <= height
        assert 0 <= left <= left + box_width <= width
        assert box_height * box_width > 0
        if sides == (300, 400) and min_area < 1:
            assert box_height * box_width > 0.98 * min_area * height * width
            assert 0.73 < box_width / box_height < 1.36


def test_evaluation_takes_the_centre():
    view = views.View(size=224, channels=3, fixed_size=False)
    expected = images.decode_crop(
        archives.encoded(PHOTO), (19, 69, 262, 262), (224,) * 2, 3
    )
    np.testing.assert_array_equal(view.evaluate(archives.encoded(PHOTO)), expected)
    # Without a random crop, training sees the same.
    np.testing.assert_array_equal(view.train(archives.encoded(PHOTO), (0, 1)), expected)


def test_an_image_of_another_size_is_an_error():
    view = views.View(size=32, channels=3, fixed_size=True)
    with pytest.raises(ValueError, match=r"shape \(300, 400, 3\), not \(32, 32, 3\)"):
        view.evaluate(archives.encoded(PHOTO))


@pytest.mark.parametrize("shape", [(300, 500), (8, 9), (3, 2)])
def test_any_image_can_be_made_to_fit(shape):
    view = views.View(size=8, channels=1, fixed_size=True)
    image = np.full((*shape, 1), 9, np.uint8)
    rows, columns = ((side - min(shape)) // 2 for side in shape)
    middle = image[rows : rows + min(shape), columns : columns + min(shape)]
    middle[:] = 7
    np.testing.assert_array_equal(view.fit(image), np.full((8, 8, 1), 7))


def test_an_image_that_fits_stays_as_it_is():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    view = views.View(size=8, channels=1, fixed_size=True)
    np.testing.assert_array_equal(view.fit(image), image)


def test_the_same_seed_gives_the_same_pixels():
    view = views.View(64, 3, False, min_crop_area=0.08, rand_augment_layers=2)
    data = archives.encoded(PHOTO)
    first, again, other = (view.train(data, (7, 3, row)) for row in (0, 0, 1))
    assert first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
