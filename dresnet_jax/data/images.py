"""Images to pixels, by OpenCV, which takes every format here."""

import io
import os

import cv2
import numpy as np
from etils import epath
from PIL import Image

from dresnet_jax.errors import UserError

# Top, left, height, width; pixels.
Box = tuple[int, int, int, int]

# The threads that read images are the parallelism.
cv2.setNumThreads(1)
# What it warns of is an error here, and names the image.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

_MODES = {
    1: cv2.IMREAD_GRAYSCALE,
    3: cv2.IMREAD_COLOR_RGB,
}

# Of the files of a directory that are taken for images.
_SUFFIXES = (
    *(".bmp", ".jpeg", ".jpg", ".pgm", ".png"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)


def files_in(directory: epath.Path) -> list[str]:
    """The images in a directory at any depth, in the order of their names.

    Raises:
      UserError: there is none.
    """
    files, directories = [], [directory]
    while directories:
        for path in directories.pop().iterdir():
            if path.is_dir():
                directories.append(path)
            elif path.suffix.lower() in _SUFFIXES:
                files.append(os.fspath(path))
    if not files:
        kinds = ", ".join(_SUFFIXES)
        raise UserError(f"Directory {directory} holds no image: {kinds}.")
    return sorted(files)


def shape(image: np.ndarray | bytes) -> tuple[int, int]:
    """Height and width in pixels; of an encoded image from its header alone.

    Raises:
      OSError: it is no image.
    """
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return opened.height, opened.width
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from error


def decode(image: np.ndarray | bytes, channels: int) -> np.ndarray:
    """The pixels of a whole image: [height, width, channels], uint8.

    Args:
      image: the same, which is returned, or an encoded image.
      channels: 1 for grey, 3 for RGB, whatever the encoded image has.

    Raises:
      OSError: it is no image, or is not whole.
    """
    if isinstance(image, np.ndarray):
        return image
    # As it is stored: a size must not depend on what a camera noted beside it.
    flags = _MODES[channels] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise OSError("the image is damaged, or of an unknown format")
    return pixels.reshape(*pixels.shape[:2], channels)


def decode_crop(
    image: np.ndarray | bytes, box: Box, size: tuple[int, int], channels: int
) -> np.ndarray:
    """A part of an image, brought to another size.

    Args:
      image: pixels, or an encoded image.
      box: the part.
      size: height and width of what is returned, pixels.
      channels: 1 for grey, 3 for RGB.

    Returns:
      [*size, channels], uint8, interpolated bilinearly.

    Raises:
      OSError: it is no image, or is not whole.
    """
    top, left, height, width = box
    part = decode(image, channels)[top : top + height, left : left + width]
    resized = cv2.resize(part, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, channels)
