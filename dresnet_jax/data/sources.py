"""Where a dataset's arrays come from; every split is the same on every machine."""

import dataclasses
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dresnet_jax.data.catalog import SPLITS, Dataset
from dresnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of one split.

    Attributes:
      images: [examples, height, width, channels], uint8.
      labels: [examples], int32.
    """

    images: np.ndarray
    labels: np.ndarray


def load(dataset: Dataset, data_dir: str) -> dict[str, Split]:
    """All splits of a dataset, by the names in `catalog.SPLITS`.

    Args:
      dataset: what it is.
      data_dir: where prepared datasets lie; not read for those that need no
        preparation.

    Raises:
      UserError: the dataset is not prepared there, or is another version.
    """
    if dataset.tfds_splits:
        builder = require(dataset, data_dir)
        return {name: _read(builder, dataset, name) for name in SPLITS}
    return {"digits": _digits, "synthetic": _synthetic}[dataset.name](dataset)


def statistics(dataset: Dataset, data_dir: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the training pixels, in [0, 1], per channel."""
    pixels = load(dataset, data_dir)["train"].images.astype(np.float64) / 255
    axes = (0, 1, 2)
    return (
        [round(value, 4) for value in pixels.mean(axis=axes).tolist()],
        [round(value, 4) for value in pixels.std(axis=axes).tolist()],
    )


def tfds_builder(dataset: Dataset, data_dir: str) -> tuple[Any, bool]:
    """The TensorFlow Datasets builder of a dataset, and whether it is prepared.

    The builder is for array_record files; reading with it needs no TensorFlow.
    """
    # Imported here, since it takes half a second and few datasets need it.
    import tensorflow_datasets as tfds

    from dresnet_jax.data import tiny_imagenet  # noqa: F401  It registers itself.

    directory = epath.Path(data_dir).expanduser()
    verbosity = logging.get_verbosity()
    # TFDS warns where nothing is prepared; `require` makes an error of it.
    logging.set_verbosity(logging.ERROR)
    try:
        builder = tfds.builder(
            dataset.name,
            data_dir=directory,
            file_format=tfds.core.FileFormat.ARRAY_RECORD,
        )
        return builder, builder.is_prepared()
    finally:
        logging.set_verbosity(verbosity)


def require(dataset: Dataset, data_dir: str) -> Any:
    """The builder of a dataset that is prepared; None where it needs no preparation.

    Raises:
      UserError: it is not prepared there, or another version is.
    """
    if not dataset.tfds_splits:
        return None
    builder, is_prepared = tfds_builder(dataset, data_dir)
    if not is_prepared:
        here = builder.data_path.parent
        others = [path.name for path in here.iterdir()] if here.exists() else []
        raise UserError(
            f"{dataset.name} {builder.version} is not prepared in {data_dir}"
            + (f", which holds {', '.join(sorted(others))}" if others else "")
            + f": run python -m dresnet_jax.prepare --dataset={dataset.name} "
            f"--data_dir={data_dir}"
        )
    return builder


def _read(builder: Any, dataset: Dataset, name: str) -> Split:
    source = builder.as_data_source(split=dataset.tfds_splits[name])
    images, labels = [], []
    # A thousand at a time: one by one, each reads a whole chunk of the file.
    for start in range(0, len(source), 1000):
        keys = range(start, min(start + 1000, len(source)))
        for example in source.__getitems__(keys):
            images.append(example["image"])
            labels.append(example["label"])
    return Split(np.stack(images), np.asarray(labels, np.int32))


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
