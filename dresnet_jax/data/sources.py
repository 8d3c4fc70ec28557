"""Where a dataset's arrays come from; every split is the same on every machine."""

import dataclasses
from collections.abc import Callable

import numpy as np

from dresnet_jax.data.catalog import SPLITS, Dataset


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of one split.

    Attributes:
      images: [examples, height, width, channels], uint8.
      labels: [examples], int32.
    """

    images: np.ndarray
    labels: np.ndarray


def load(dataset: Dataset) -> dict[str, Split]:
    """All splits of a dataset, by the names in `catalog.SPLITS`."""
    return _LOADERS[dataset.name](dataset)


def _digits(dataset: Dataset) -> dict[str, Split]:
    # Imported here, since it takes a second and only this dataset needs it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 0..16 to 0..255.
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int32)
    # RandomState's stream is frozen, so that the splits stay the same for ever.
    order = np.random.RandomState(0).permutation(len(labels))
    ends = np.cumsum([dataset.splits[name] for name in SPLITS])
    parts = np.split(order, ends[:-1])
    return {
        name: Split(images[part], labels[part])
        for name, part in zip(SPLITS, parts, strict=True)
    }


def _synthetic(dataset: Dataset) -> dict[str, Split]:
    """A pattern of 4x4 random patches per class, under noise of the same strength."""
    random = np.random.RandomState(0)
    size, channels = dataset.image_size, dataset.channels
    coarse = random.normal(size=(dataset.num_classes, 4, 4, channels))
    cells = np.arange(size) * 4 // size
    patterns = coarse[:, cells][:, :, cells].astype(np.float32)

    def split(examples: int) -> Split:
        labels = random.randint(dataset.num_classes, size=examples).astype(np.int32)
        images = patterns[labels]
        images += random.standard_normal(images.shape).astype(np.float32)
        pixels = np.clip(127.5 + 45 * images, 0, 255).astype(np.uint8)
        return Split(pixels, labels)

    return {name: split(dataset.splits[name]) for name in SPLITS}


_LOADERS: dict[str, Callable[[Dataset], dict[str, Split]]] = {
    "digits": _digits,
    "synthetic": _synthetic,
}
