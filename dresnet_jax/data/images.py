"""Images to pixels, by one rule for every format, command and dataset.

The rule, of which a run keeps the number: an image is turned as its note of orientation
says; where it is transparent, a background shows; 16-bit values lose their lower half;
the first picture of an animation is taken; and what is made smaller is averaged, so
that nothing between two sampled pixels is lost. Rule 1, of earlier versions, took
images as they are stored, left transparency out, and sampled what it made smaller.

OpenCV decodes what is opaque and has 8 or 16 bits, Pillow the rest.
"""

import io
import os
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from dresnet_jax import errors

# Top, left, height, width; pixels.
Box = tuple[int, int, int, int]

# The newest rule, and all that runs were trained by.
RULE = 2
RULES = (1, 2)

# The threads that read images are the parallelism.
cv2.setNumThreads(1)
# What they warn of is an error here, and names the image.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings("ignore", module=r"PIL\.")
# Programs that draw images keep how they did so in texts of megabytes.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28

_MODES = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
_DAMAGED = "the image is damaged, or of an unknown format"
_ORIENTATION = 0x0112
# A camera of 12 bits gives no larger values; of 16, no photograph is this dark.
_12_BITS = 2**12

# Of the files of a directory that are taken for images.
SUFFIXES = (
    *(".bmp", ".jpeg", ".jpg", ".pgm", ".png"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)


def printable(name: str) -> str:
    """Returns a file's name, whatever its bytes, as a terminal may be given it."""
    return errors.printable(os.fsencode(name).decode(errors="backslashreplace"))


def shape(image: np.ndarray | bytes, rule: int = RULE) -> tuple[int, int]:
    """Returns height and width in pixels; of an encoded image from its header alone.

    Raises:
      OSError: it is no image.
    """
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    with _opened(image) as opened:
        width, height = opened.size
        if rule >= 2 and opened.format != "TIFF" and _orientation(opened) >= 5:
            height, width = width, height
        return height, width


def decode(
    image: np.ndarray | bytes, channels: int, rule: int = RULE, background: int = 255
) -> np.ndarray:
    """Returns the pixels of a whole image: [height, width, channels], uint8.

    Args:
      image: the same, which is returned, or an encoded image.
      channels: 1 for grey, 3 for RGB, whatever the encoded image has.
      rule: in `RULES`.
      background: grey level, 0 to 255, that shows where the image is transparent.

    Raises:
      OSError: it is no image, is not whole, or its values have no agreed white.
    """
    if isinstance(image, np.ndarray):
        return image
    if rule == 1:
        pixels = _by_opencv(image, _MODES[channels] | cv2.IMREAD_IGNORE_ORIENTATION)
    elif image.startswith(b"\xff\xd8"):  # JPEG, which is opaque and has 8 bits.
        pixels = _by_opencv(image, _MODES[channels])
    else:
        pixels = _by_header(image, channels, background)
    return pixels.reshape(*pixels.shape[:2], channels)


def _by_header(image: bytes, channels: int, background: int) -> np.ndarray:
    with _opened(image) as opened:
        if opened.mode == "F" or (opened.mode == "I" and opened.format == "TIFF"):
            raise OSError("its values of 32 bits have no agreed white")
        if opened.format == "PPM":
            # Its header says how large white is; Pillow scales by that.
            whole = _loaded(opened)
            if whole.mode == "I":
                result = (np.asarray(whole) >> 8).astype(np.uint8)
            else:
                result = np.asarray(whole.convert("L" if whole.mode == "1" else None))
            return _of_channels(result, channels)
        has_alpha = opened.mode in ("RGBA", "LA", "PA", "La", "RGBa")
        if has_alpha or "transparency" in opened.info:
            _check_depth(_by_opencv(image, cv2.IMREAD_UNCHANGED))
            turned = ImageOps.exif_transpose(_loaded(opened))
            result = np.asarray(turned.convert("RGBA")).astype(np.uint16)
            colour, alpha = result[..., :3], result[..., 3:]
            laid = (colour * alpha + background * (255 - alpha) + 127) // 255
            return _of_channels(laid.astype(np.uint8), channels)
    # Not as RGB, which OpenCV 5.0 reads wrongly out of a TIFF of 16 bits.
    mode = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    pixels = _by_opencv(image, mode | cv2.IMREAD_ANYDEPTH)
    _check_depth(pixels)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if channels == 3 else pixels


def _check_depth(pixels: np.ndarray) -> None:
    if pixels.dtype == np.uint16 and 0 < pixels.max() < _12_BITS:
        raise OSError(
            f"its 16-bit values reach {pixels.max()} of 65,535, as if they had 10 or "
            "12 bits: multiply them so that white is 65,535"
        )


def _of_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Grey [height, width] or RGB pixels, as grey or as RGB."""
    if (pixels.ndim == 3) == (channels == 3):
        return pixels
    change = cv2.COLOR_RGB2GRAY if channels == 1 else cv2.COLOR_GRAY2RGB
    return cv2.cvtColor(pixels, change)


def _by_opencv(image: bytes, flags: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise OSError(_DAMAGED)
    return pixels


def _opened(image: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(image))
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from error
    # Pillow's readers raise whatever the bytes lead them to.
    except Exception as error:
        raise OSError(_DAMAGED) from error


def _loaded(opened: Image.Image) -> Image.Image:
    try:
        opened.load()
    # As in `_opened`.
    except Exception as error:
        raise OSError(_DAMAGED) from error
    return opened


def _orientation(opened: Image.Image) -> int:
    """As a camera noted it: 1 for upright, 5 to 8 where sides are exchanged."""
    try:
        result = opened.getexif().get(_ORIENTATION, 1)
    # As in `_opened`: a note that cannot be read is none.
    except Exception:
        return 1
    return result if result in range(1, 9) else 1


def decode_crop(
    image: np.ndarray | bytes,
    box: Box,
    size: tuple[int, int],
    channels: int,
    rule: int = RULE,
    background: int = 255,
) -> np.ndarray:
    """Returns the part of an image in a box, brought to another size.

    The size is height and width in pixels; the rest is as in `decode`.

    Returns:
      [*size, channels], uint8: averaged over what a smaller side leaves out,
      interpolated bilinearly along a larger one.

    Raises:
      OSError: as in `decode`.
    """
    top, left, height, width = box
    whole = decode(image, channels, rule, background)
    result = whole[top : top + height, left : left + width]
    if rule >= 2:
        smaller = min(size[0], height), min(size[1], width)
        result = cv2.resize(result, smaller[::-1], interpolation=cv2.INTER_AREA)
    result = cv2.resize(result, size[::-1], interpolation=cv2.INTER_LINEAR)
    return result.reshape(*size, channels)
