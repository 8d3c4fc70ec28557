"""Where a dataset's examples come from; every split is the same on every machine."""

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dresnet_jax.data import folder_records, lookup, prepared, records
from dresnet_jax.data.catalog import SPLITS, Dataset
from dresnet_jax.data.records import Example, Records
from dresnet_jax.errors import RunFailedError

# Records read at once: one by one, the reading costs more than the record.
_CHUNK = 1000


class CorruptRecordError(RunFailedError):
    """A record of a prepared dataset cannot be read, or is not what it should be."""


# From a stored image to its pixels, [height, width, channels], uint8.
HostImage = Callable[[np.ndarray | bytes], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The examples of a split in memory.

    Attributes:
      images: [examples, height, width, channels], uint8.
      labels: [examples], int32.
      corrupt: the places of records that could not be read; the next example that
        could stands there in `images` and `labels`.
    """

    images: np.ndarray
    labels: np.ndarray
    corrupt: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some places of the split."""
        return [
            Example(None if i in self.corrupt else self.images[i], int(self.labels[i]))
            for i in indices
        ]

    def where(self, index: int) -> str:
        """Returns the name of a place of the split, for a person."""
        return f"example {index}"

    def part(self, start: int, stop: int) -> "Arrays":
        """Returns the examples from one place up to another."""
        corrupt = tuple(i - start for i in self.corrupt if start <= i < stop)
        return Arrays(self.images[start:stop], self.labels[start:stop], corrupt)


# Random access to the examples of one split.
Examples = Arrays | Records


def open_splits(dataset: Dataset, data_dir: str) -> dict[str, Examples]:
    """Returns all splits of a dataset, by the names in `catalog.SPLITS`.

    The data directory is not read for those that need no preparation.

    Raises:
      UserError: the dataset is not prepared there, is another one, or is damaged.
    """
    if not dataset.tfds_splits:
        return {"digits": _digits, "synthetic": _synthetic}[dataset.name](dataset)
    if dataset.name == "folder":
        lookup.require_folder(dataset, data_dir)
    if lookup.is_folder(dataset, data_dir):
        whole = folder_records.open_splits(lookup.folder_path(data_dir))
    else:
        whole = prepared.open_splits(prepared.require(dataset, data_dir))
    splits: dict[str, Examples] = {}
    for name in SPLITS:
        official, start, stop = dataset.tfds_range(name)
        splits[name] = part = whole[official].part(start, stop)
        part.check_files()
    return splits


def load(examples: Examples, host_image: HostImage, *, skip_corrupt: bool) -> Arrays:
    """Reads a whole split into memory, as the pixels that `host_image` returns.

    With `skip_corrupt`, others stand in for examples that cannot be read.

    Raises:
      CorruptRecordError: one cannot be read, and none may stand in for it.
    """
    if isinstance(examples, Arrays):
        return examples
    result = list(_pairs(examples, host_image, skip_corrupt))
    corrupt = tuple(index for index, pair in enumerate(result) if pair is None)
    if len(corrupt) == len(result):
        raise CorruptRecordError("No example can be read.")
    # After the last one comes the first that can be read.
    following = next(filter(None, result))
    for index in reversed(range(len(result))):
        following = result[index] = result[index] or following
    images, labels = zip(*result, strict=True)
    return Arrays(np.stack(images), np.asarray(labels, np.int32), corrupt)


def _pairs(
    examples: Examples, host_image: HostImage, skip_corrupt: bool
) -> Iterator[tuple[np.ndarray, int] | None]:
    """The pixels and labels of a split in order, read ahead by threads.

    None where an example cannot be read.
    """

    def read(start: int) -> list[tuple[np.ndarray, int] | None]:
        indices = range(start, min(start + _CHUNK, len(examples)))
        pairs: list[tuple[np.ndarray, int] | None] = []
        for index, example in zip(indices, examples.read(indices), strict=True):
            image = pixels(examples, index, example, host_image, skip_corrupt)
            pairs.append(None if image is None else (image, example.label))
        return pairs

    starts = range(0, len(examples), _CHUNK)
    for pairs in records.read_in_order(read, starts, ahead=os.cpu_count() or 1):
        yield from pairs


def pixels(
    examples: Examples,
    index: int,
    example: Example,
    host_image: HostImage,
    skip_corrupt: bool,
) -> np.ndarray | None:
    """Returns the pixels of the example of a place: [height, width, channels], uint8.

    None for one that cannot be read, where `skip_corrupt` is set.

    Raises:
      CorruptRecordError: it cannot be read; names the record.
    """
    if example.image is None:
        if skip_corrupt:
            return None
        raise CorruptRecordError(f"{examples.where(index)} cannot be read.")
    try:
        return host_image(example.image)
    except (OSError, ValueError) as error:
        if skip_corrupt:
            return None
        raise CorruptRecordError(f"{examples.where(index)}: {error}") from error


def statistics(
    dataset: Dataset, data_dir: str, host_image: HostImage
) -> tuple[list[float], list[float]]:
    """Computes mean and deviation of the training pixels, in [0, 1], per channel."""
    train = open_splits(dataset, data_dir)["train"]
    counts = np.zeros((dataset.channels, 256), np.int64)
    for image, _ in filter(None, _pairs(train, host_image, skip_corrupt=False)):
        of_channels = image.reshape(-1, dataset.channels).T
        counts += [np.bincount(values, minlength=256) for values in of_channels]
    shares, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = shares @ values
    std = np.sqrt(shares @ values**2 - mean**2)
    return [round(x, 4) for x in mean.tolist()], [round(x, 4) for x in std.tolist()]


def _digits(dataset: Dataset) -> dict[str, Examples]:
    # The file that scikit-learn's `load_digits` reads, 64 pixels and a label a line: to
    # import scikit-learn takes seconds.
    package = importlib.util.find_spec("sklearn")
    assert package is not None, "it is a requirement"
    assert package.origin is not None, "it is an ordinary package"
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")
    # 0..16 to 0..255.
    images = np.round(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int32)
    # RandomState's stream is frozen, so that the splits stay the same for ever.
    order = np.random.RandomState(0).permutation(len(labels))
    whole = Arrays(images[order], labels[order])
    return {name: whole.part(*dataset.tfds_range(name)[1:]) for name in SPLITS}


def _synthetic(dataset: Dataset) -> dict[str, Examples]:
    """A pattern of 4x4 random patches per class, under noise of the same strength."""
    random = np.random.RandomState(0)
    size, channels = dataset.image_size, dataset.channels
    coarse = random.normal(size=(dataset.num_classes, 4, 4, channels))
    cells = np.arange(size) * 4 // size
    patterns = coarse[:, cells][:, :, cells].astype(np.float32)

    def split(examples: int) -> Arrays:
        labels = random.randint(dataset.num_classes, size=examples).astype(np.int32)
        images = patterns[labels]
        images += random.standard_normal(images.shape).astype(np.float32)
        pixels = np.clip(127.5 + 45 * images, 0, 255).astype(np.uint8)
        return Arrays(pixels, labels)

    return {name: split(dataset.splits[name]) for name in SPLITS}
