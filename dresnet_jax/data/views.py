"""What becomes of an image on the host, before it is part of a batch."""

import dataclasses

import numpy as np

from dresnet_jax.data import images, rand_augment

# The centred part that is evaluated, of the shorter side: 224 of 256 pixels, as
# published for ImageNet (Krizhevsky et al. 2012).
_EVAL_SHARE = 0.875


@dataclasses.dataclass(frozen=True)
class View:
    """How an image becomes [size, size, channels] uint8 pixels.

    Attributes:
      size: height and width, pixels.
      channels: 1 for grey, 3 for RGB.
      fixed_size: whether images have that size already; others are cropped and resized.
      min_crop_area: least share of the area that a random-resized-crop keeps
        (Szegedy et al. 2015); 0 for none.
      rand_augment_layers: operations of RandAugment on each image; 0 for none.
      rand_augment_magnitude: their strength, 0 to 10.
      rule: by which images are decoded, in `images.RULES`.
      background: grey level, 0 to 255, that shows where an image is transparent.
    """

    size: int
    channels: int
    fixed_size: bool
    min_crop_area: float = 0.0
    rand_augment_layers: int = 0
    rand_augment_magnitude: float = 0.0
    rule: int = images.RULE
    background: int = 255

    @property
    def augments(self) -> bool:
        """Whether training draws random numbers for each image."""
        return self.min_crop_area > 0 or self.rand_augment_layers > 0

    def train(self, image: np.ndarray | bytes, seed: tuple[int, ...]) -> np.ndarray:
        """Returns pixels for training, augmented; the same for the same seed.

        Raises:
          OSError: the image is damaged.
          ValueError: it has not the size that it should have.
        """
        if not self.augments:
            return self.evaluate(image)
        random = np.random.default_rng(seed)
        if self.min_crop_area:
            box = random_box(
                random, *images.shape(image, self.rule), self.min_crop_area
            )
            pixels = self._resized(image, box)
        else:
            pixels = self.evaluate(image)
        return rand_augment.apply(
            random, pixels, self.rand_augment_layers, self.rand_augment_magnitude
        )

    def evaluate(self, image: np.ndarray | bytes) -> np.ndarray:
        """Returns pixels as they are, or of the centre where images differ in size.

        Raises:
          OSError: the image is damaged.
          ValueError: it has not the size that it should have.
        """
        if not self.fixed_size:
            return self._resized(image, centre_box(*images.shape(image, self.rule)))
        pixels = images.decode(image, self.channels, self.rule, self.background)
        expected = (self.size, self.size, self.channels)
        if pixels.shape != expected:
            raise ValueError(f"the image has shape {pixels.shape}, not {expected}")
        return pixels

    def fit(self, image: np.ndarray | bytes) -> np.ndarray:
        """Returns the pixels of any image; its middle where it has another shape.

        Raises:
          OSError: the image is damaged.
        """
        height, width = images.shape(image, self.rule)
        if not self.fixed_size or (height, width) == (self.size, self.size):
            return self.evaluate(image)
        return self._resized(image, centre_box(height, width, share=1))

    def _resized(self, image: np.ndarray | bytes, box: images.Box) -> np.ndarray:
        size, how = (self.size, self.size), (self.rule, self.background)
        return images.decode_crop(image, box, size, self.channels, *how)


def random_box(
    random: np.random.Generator, height: int, width: int, min_area: float
) -> images.Box:
    """Returns a box of random area and shape, from 3:4 to 4:3, anywhere in an image.

    `height` and `width` are the image's, in pixels; `min_area` is the
    least share of its area.
    """
    for _ in range(10):
        area = height * width * random.uniform(min_area, 1)
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        box_height = round(np.sqrt(area / ratio))
        box_width = round(np.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(random.integers(height - box_height + 1))
            left = int(random.integers(width - box_width + 1))
            return top, left, box_height, box_width
    return centre_box(height, width)


def centre_box(height: int, width: int, share: float = _EVAL_SHARE) -> images.Box:
    """Returns the square in the centre, of a share of the shorter side."""
    side = max(1, round(share * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side
