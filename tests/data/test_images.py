"""Images of every format come out as they are, and damaged ones do not come out."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

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


# A white part that is transparent, and a red one that is half so, on what is black.
INK = np.zeros((8, 8, 4), np.uint8)
INK[..., 3] = 255
INK[:4] = (255, 255, 255, 0)
INK[:4, :4] = (250, 0, 0, 128)


def how_saved(orientation, image_format):
    """The arguments by which Pillow notes an orientation in a format."""
    if image_format == "TIFF":
        return {"tiffinfo": {0x0112: orientation}}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif, "quality": 95, "lossless": True}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_is_turned_as_a_camera_noted(image_format, orientation):
    out = io.BytesIO()
    archives.PHOTO.save(out, image_format, **how_saved(orientation, image_format))
    data = out.getvalue()
    upright = ImageOps.exif_transpose(Image.open(out)).convert("RGB")
    expected = np.asarray(upright).astype(int)
    result = images.decode(data, 3)
    assert np.abs(result - expected).mean() < 2
    assert images.shape(data) == result.shape[:2]
    # As in earlier versions.
    stored = images.decode(data, 3, rule=1)
    assert images.shape(data, rule=1) == stored.shape[:2]
    if image_format != "TIFF":
        assert stored.shape == (300, 400, 3)


@pytest.mark.parametrize("background", [0, 255])
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_a_background_shows_where_an_image_is_transparent(image_format, background):
    out = io.BytesIO()
    Image.fromarray(INK).save(out, image_format, lossless=True)
    result = images.decode(out.getvalue(), 3, background=background)
    np.testing.assert_array_equal(result[:4, 4:], background)
    np.testing.assert_array_equal(result[4:], 0)
    half = background * 127 / 255
    assert np.abs(result[0, 0] - (125.5 + half, half, half)).max() < 1
    grey = images.decode(out.getvalue(), 1, background=background)
    assert (grey[:4, 4:] == background).all()


def test_transparency_of_palettes_and_of_one_colour_counts_too():
    grey = Image.fromarray(INK[..., 0])
    for image in (grey, grey.convert("P"), grey.convert("RGB")):
        out = io.BytesIO()
        see_through = (0, 0, 0) if image.mode == "RGB" else 0
        image.save(out, "PNG", transparency=see_through)
        assert (
            images.decode(out.getvalue(), 3, background=7)[-1, -1].tolist() == [7] * 3
        )


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_lose_their_lower_half_or_are_refused(suffix, channels):
    random = np.random.RandomState(0)
    deep = random.randint(0, 2**16, (9, 8, channels)).astype(np.uint16)
    deep[..., 3:] = 2**16 - 1
    data = cv2.imencode(suffix, deep)[1].tobytes()
    result = images.decode(data, 3)
    expected = np.broadcast_to(deep[..., :3][..., ::-1] // 256, result.shape)
    np.testing.assert_allclose(result, expected, atol=1)
    for bits in (10, 12):
        camera = deep // 2 ** (16 - bits)
        camera[..., 3:] = 0
        data = cv2.imencode(suffix, camera)[1].tobytes()
        with pytest.raises(OSError, match=r"16-bit values reach \d+ of 65,535"):
            images.decode(data, 3)


def test_a_header_that_says_what_white_is_is_obeyed():
    values = np.arange(64).reshape(8, 8) * 16
    for largest, kind in ((1008, ">u2"), (63, "u1")):
        pixels = (values * largest // 1008).astype(kind).tobytes()
        data = b"P5 8 8 %d\n" % largest + pixels
        result = images.decode(data, 1)[..., 0]
        np.testing.assert_allclose(result, values * 255 / 1008, atol=2)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_what_has_no_agreed_white_is_refused(kind):
    out = io.BytesIO()
    Image.fromarray(np.ones((4, 4), kind)).save(out, "TIFF")
    with pytest.raises(OSError, match="32 bits have no agreed white"):
        images.decode(out.getvalue(), 1)


def test_texts_of_megabytes_next_to_the_pixels_do_not_matter():
    note = PngImagePlugin.PngInfo()
    note.add_text("workflow", "x" * 2_000_000, zip=True)
    out = io.BytesIO()
    archives.PHOTO.save(out, "PNG", pnginfo=note)
    assert images.shape(out.getvalue()) == (300, 400)


@pytest.mark.parametrize("size", [(224, 224), (20, 30), (600, 500)])
@pytest.mark.parametrize(
    "box", [(0, 0, 300, 400), (100, 30, 57, 200), (299, 399, 1, 1)]
)
def test_a_crop_is_the_part_of_the_whole(box, size):
    data = archives.encoded(archives.PHOTO)
    top, left, height, width = box
    whole = images.decode(data, 3)
    part = whole[top : top + height, left : left + width]
    result = images.decode_crop(data, box, size, 3)
    resized = Image.fromarray(part).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.abs(result - np.asarray(resized).astype(int)).mean() < 2.5
    np.testing.assert_array_equal(images.decode_crop(whole, box, size, 3), result)
    sampled = images.decode_crop(whole, box, size, 3, rule=1)
    np.testing.assert_array_equal(sampled, cv2.resize(part, size[::-1]))


def test_what_is_made_smaller_is_averaged():
    """Lines of one pixel, black and white, become grey; sampled they would not."""
    lines = np.zeros((64, 64, 1), np.uint8)
    lines[:, ::2] = 255
    result = images.decode_crop(lines, (0, 0, 64, 64), (64, 16), 1)
    np.testing.assert_allclose(result, 127.5, atol=1)
    assert np.ptp(images.decode_crop(lines, (0, 0, 64, 64), (64, 21), 1, rule=1)) > 100
