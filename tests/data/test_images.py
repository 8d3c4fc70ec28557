"""Images of every format come out as they are, and damaged ones do not come out."""

import cv2
import numpy as np
import pytest
from PIL import Image

from dresnet_jax.data import images, rand_augment, views
from tests.data import archives

RANDOM = np.random.RandomState(0)
# Paler than they could be, so that there is contrast to gain.
PHOTO, GREY = (
    archives.smooth_image(RANDOM, 300, 400, gray=gray).point(lambda x: 40 + x // 2)
    for gray in (False, True)
)


@pytest.mark.parametrize(
    ("image", "image_format", "within"),
    [
        (PHOTO, "PNG", 0),
        (PHOTO, "JPEG", 2),
        (PHOTO.convert("P"), "PNG", 0),
        (GREY, "PNG", 0),
        (GREY, "JPEG", 1),
        # Conversions of ink to light differ.
        (PHOTO.convert("CMYK"), "JPEG", 6),
    ],
)
def test_each_format_gives_the_channels_that_are_asked_for(image, image_format, within):
    data = archives.encoded(image, image_format)
    expected = archives.decoded(data).astype(int)
    assert images.shape(data) == expected.shape[:2] == (300, 400)
    colour = images.decode(data, 3)
    assert colour.shape == (300, 400, 3)
    assert colour.dtype == np.uint8
    assert np.abs(colour - expected).mean() <= within
    grey = images.decode(data, 1)
    assert grey.shape == (300, 400, 1)
    luminance = expected @ (0.299, 0.587, 0.114)
    assert np.abs(grey[..., 0] - luminance).mean() <= within + 1


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.95])
def test_an_image_that_is_not_whole_is_an_error(image_format, kept):
    data = archives.encoded(PHOTO, image_format)
    with pytest.raises(OSError, match="the image is damaged, or of an unknown format"):
        images.decode(data[: int(kept * len(data))] or b"nothing", 3)


def test_the_cameras_note_of_an_orientation_changes_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    PHOTO.save(tmp_path / "turned.jpg", exif=exif)
    data = (tmp_path / "turned.jpg").read_bytes()
    assert images.decode(data, 3).shape == (300, 400, 3)


@pytest.mark.parametrize("size", [(224, 224), (20, 30), (600, 500)])
@pytest.mark.parametrize(
    "box", [(0, 0, 300, 400), (100, 30, 57, 200), (299, 399, 1, 1)]
)
def test_a_crop_is_the_part_of_the_whole(box, size):
    data = archives.encoded(PHOTO)
    top, left, height, width = box
    whole = images.decode(data, 3)
    part = whole[top : top + height, left : left + width]
    found = images.decode_crop(data, box, size, 3)
    np.testing.assert_array_equal(found, cv2.resize(part, size[::-1]))
    np.testing.assert_array_equal(images.decode_crop(whole, box, size, 3), found)


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


def test_the_same_seed_gives_the_same_pixels():
    view = views.View(64, 3, False, min_crop_area=0.08, rand_augment_layers=2)
    data = archives.encoded(PHOTO)
    first, again, other = (view.train(data, (7, 3, row)) for row in (0, 0, 1))
    assert first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", rand_augment.OPERATIONS)
@pytest.mark.parametrize("image", [PHOTO, GREY], ids=["colour", "grey"])
def test_operations_keep_the_shape_and_are_nothing_at_strength_0(name, image):
    operation = rand_augment.OPERATIONS[name]
    for sign in (-1, 1):
        found = np.asarray(operation(image, 0.9, sign))
        assert found.shape == np.asarray(image).shape
        assert found.dtype == np.uint8
    changed = not np.array_equal(found, np.asarray(image))
    colours_only = name == "color" and image is GREY
    assert changed == (name != "identity" and not colours_only)
    if name not in ("auto_contrast", "equalize", "solarize"):
        still = np.asarray(operation(image, 0.0, 1)).astype(int)
        assert np.abs(still - np.asarray(image)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_draws_its_layers(channels):
    pixels = images.decode(archives.encoded(PHOTO), channels)
    assert rand_augment.apply(np.random.default_rng(0), pixels, 0, 9) is pixels
    found = [
        rand_augment.apply(np.random.default_rng(seed), pixels, 2, 9)
        for seed in range(8)
    ]
    assert all(image.shape == pixels.shape for image in found)
    assert len({image.tobytes() for image in found}) > 4
