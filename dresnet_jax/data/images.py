"""Encoded images to pixels, decoding no more than is used."""

import io

import numpy as np
from PIL import Image

_MODES = {1: "L", 3: "RGB"}

# Top, left, height, width; pixels.
Box = tuple[int, int, int, int]


def _open(data: np.ndarray | bytes) -> Image.Image:
    if isinstance(data, bytes):
        return Image.open(io.BytesIO(data))
    return Image.fromarray(data.squeeze(-1) if data.shape[-1] == 1 else data)


def decode(data: np.ndarray | bytes, channels: int) -> np.ndarray:
    """A whole image: [height, width, channels], uint8.

    Raises:
      OSError: it is damaged, or no image.
    """
    if not isinstance(data, bytes):
        return data
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert(_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def decode_crop(
    data: np.ndarray | bytes,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    channels: int,
) -> np.ndarray:
    top, left, height, width = box
    with _open(data) as image:
        pixels = np.asarray(
            image.convert(_MODES[channels]).resize(
                size[::-1],
                Image.Resampling.BILINEAR,
                (left, top, left + width, top + height),
            )
        )
    return pixels.reshape(*pixels.shape[:2], channels)


def shape(data: np.ndarray | bytes) -> tuple[int, int]:
    """Height and width."""
    with _open(data) as image:
        return image.height, image.width
