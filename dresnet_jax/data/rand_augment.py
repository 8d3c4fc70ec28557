"""RandAugment (Cubuk et al. 2019), by Pillow's operations, on the host."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# What geometric operations bring in from outside the image.
_FILL = 128


def apply(
    random: np.random.Generator, pixels: np.ndarray, layers: int, magnitude: float
) -> np.ndarray:
    """Applies operations drawn at random, one after the other.

    Args:
      random: where random numbers come from.
      pixels: [height, width, channels], uint8; grey or RGB.
      layers: how many operations.
      magnitude: their strength, 0 to 10.

    Returns:
      [height, width, channels], uint8.
    """
    if not layers:
        return pixels
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    for index in random.integers(len(OPERATIONS), size=layers):
        sign = random.choice((-1, 1))
        image = list(OPERATIONS.values())[index](image, magnitude / 10, sign)
    return np.asarray(image).reshape(pixels.shape)


Operation = Callable[[Image.Image, float, int], Image.Image]


def _affine(matrix: Callable[[float, Image.Image], tuple[float, ...]]) -> Operation:
    def operation(image: Image.Image, strength: float, sign: int) -> Image.Image:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix(sign * strength, image),
            resample=Image.Resampling.BILINEAR,
            fillcolor=_FILL if image.mode == "L" else (_FILL,) * 3,
        )

    return operation


def _rotate(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return image.rotate(
        sign * strength * 30,
        resample=Image.Resampling.BILINEAR,
        fillcolor=_FILL if image.mode == "L" else (_FILL,) * 3,
    )


def _enhance(enhancement: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, strength, sign: enhancement(image).enhance(
        1 + sign * strength * 0.9
    )


# name -> operation(image, strength in [0, 1], sign), as in the paper's table.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength, sign: image,
    "auto_contrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign: ImageOps.equalize(image),
    "rotate": _rotate,
    "solarize": lambda image, strength, sign: ImageOps.solarize(
        image, round(256 * (1 - strength))
    ),
    "posterize": lambda image, strength, sign: ImageOps.posterize(
        image, 8 - round(4 * strength)
    ),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda s, image: (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": _affine(lambda s, image: (1, 0, 0, 0.3 * s, 1, 0)),
    # A third of the image, which is what 100 pixels are of the paper's 331.
    "translate_x": _affine(lambda s, image: (1, 0, s * image.width / 3, 0, 1, 0)),
    "translate_y": _affine(lambda s, image: (1, 0, 0, 0, 1, s * image.height / 3)),
}
