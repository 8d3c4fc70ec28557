"""Images of every format come out as they are, and damaged ones do not come out."""

import cv2
import numpy as np
import pytest
from PIL import Image

from dresnet_jax.data import images
from tests.data import archives


@pytest.mark.parametrize(
    ("image", "image_format", "within"),
    [
        (archives.PHOTO, "PNG", 0),
        (archives.PHOTO, "JPEG", 2),
        (archives.PHOTO.convert("P"), "PNG", 0),
        (archives.GREY, "PNG", 0),
        (archives.GREY, "JPEG", 1),
        # Conversions of ink to light differ.
        (archives.PHOTO.convert("CMYK"), "JPEG", 6),
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
    data = archives.encoded(archives.PHOTO, image_format)
    with pytest.raises(OSError, match="the image is damaged, or of an unknown format"):
        images.decode(data[: int(kept * len(data))], 3)


def test_the_cameras_note_of_an_orientation_changes_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    archives.PHOTO.save(tmp_path / "turned.jpg", exif=exif)
    data = (tmp_path / "turned.jpg").read_bytes()
    assert images.decode(data, 3).shape == (300, 400, 3)


@pytest.mark.parametrize("size", [(224, 224), (20, 30), (600, 500)])
@pytest.mark.parametrize(
    "box", [(0, 0, 300, 400), (100, 30, 57, 200), (299, 399, 1, 1)]
)
def test_a_crop_is_the_part_of_the_whole(box, size):
    data = archives.encoded(archives.PHOTO)
    top, left, height, width = box
    whole = images.decode(data, 3)
    part = whole[top : top + height, left : left + width]
    found = images.decode_crop(data, box, size, 3)
    np.testing.assert_array_equal(found, cv2.resize(part, size[::-1]))
    np.testing.assert_array_equal(images.decode_crop(whole, box, size, 3), found)
