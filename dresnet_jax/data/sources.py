"""Where a dataset's examples come from; every split is the same on every machine."""

import bisect
import collections
import concurrent.futures
import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dresnet_jax.data import folder_records, lookup, prepared
from dresnet_jax.data.catalog import SPLITS, Dataset
from dresnet_jax.data.images import Example
from dresnet_jax.errors import RunFailedError, UserError

# Records read at once: one by one, the reading costs more than the record.
_CHUNK = 1000


class CorruptRecordError(RunFailedError):
    """A record of a prepared dataset cannot be read, or is not what it should be."""


# From a stored image to its pixels, [height, width, channels], uint8.
HostImage = Callable[[np.ndarray | bytes], np.ndarray]


class Examples(Protocol):
    """Random access to the examples of one split."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some places of the split."""

    def where(self, index: int) -> str:
        """Returns the name of a place of the split, for a person."""


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


@dataclasses.dataclass(frozen=True)
class Part:
    """Some of the examples of a split, one after the other.

    Attributes:
      whole: the split.
      start: the place of the first.
      count: how many.
    """

    whole: Examples
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some places of the part."""
        return self.whole.read([self.start + index for index in indices])

    def where(self, index: int) -> str:
        """Returns the name of a place of the part, for a person."""
        return self.whole.where(self.start + index)


def divided(examples: Examples, count: int) -> tuple[Examples, Examples]:
    """Returns the first examples of a split, and the rest."""
    if not isinstance(examples, Arrays):
        return Part(examples, 0, count), Part(examples, count, len(examples) - count)
    images, labels = examples.images, examples.labels
    return (
        Arrays(
            images[:count],
            labels[:count],
            tuple(i for i in examples.corrupt if i < count),
        ),
        Arrays(
            images[count:],
            labels[count:],
            tuple(i - count for i in examples.corrupt if i >= count),
        ),
    )


@dataclasses.dataclass(frozen=True)
class Records:
    """The examples of a split in array_record files that TFDS wrote.

    Attributes:
      dataset: what the dataset is.
      builder: the TFDS builder of it.
      name: of the split, in `catalog.SPLITS`.
    """

    dataset: Dataset
    builder: Any
    name: str

    def __len__(self) -> int:
        return self.dataset.splits[self.name]

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay behind when a worker process gets a copy.
        return {field: self.__dict__[field] for field in self.__dataclass_fields__}

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some places of the split."""
        try:
            return [_example(found) for found in self._source.__getitems__(indices)]
        except RuntimeError:
            # array_record does not say which; one of them is unreadable.
            return [self._read_alone(index) for index in indices]

    def _read_alone(self, index: int) -> Example:
        try:
            return _example(self._source[index])
        except RuntimeError:
            return Example(None, 0)

    def where(self, index: int) -> str:
        """Names a place of the split: the record and the file it is in."""
        for part in self.builder.info.splits[self._slice].file_instructions:
            if index < part.take:
                break
            index -= part.take
        return f"record {part.skip + index} of {part.filename}"

    def check_files(self) -> None:
        """Opens every file of the split.

        Raises:
          UserError: a file is missing or not whole; names it.
        """
        parts = self.builder.info.splits[self._slice].file_instructions

        def check(part: Any) -> None:
            found = folder_records.num_records(part.filename)
            if found != part.examples_in_shard:
                raise UserError(
                    f"{part.filename} is truncated or missing: it has {found} of "
                    f"{part.examples_in_shard} records. Delete "
                    f"{self.builder.data_path} and prepare {self.dataset.name} again."
                )

        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(check, parts))

    @property
    def _slice(self) -> str:
        """The part of the official split, as TFDS writes it."""
        official, start, stop = self.dataset.tfds_range(self.name)
        return f"{official}[{start}:{stop}]"

    @functools.cached_property
    def _source(self) -> Any:
        import tensorflow_datasets as tfds

        return self.builder.as_data_source(
            split=self._slice, decoders={"image": tfds.decode.SkipDecoding()}
        )


def _example(found: Mapping[str, Any]) -> Example:
    return Example(found["image"], int(found["label"]))


def open_splits(dataset: Dataset, data_dir: str) -> dict[str, Examples]:
    """Returns all splits of a dataset, by the names in `catalog.SPLITS`.

    Args:
      dataset: what it is.
      data_dir: where prepared datasets lie; not read for those that need no
        preparation.

    Raises:
      UserError: the dataset is not prepared there, is another one, or is damaged.
    """
    if not dataset.tfds_splits:
        return {"digits": _digits, "synthetic": _synthetic}[dataset.name](dataset)
    if dataset.name == "folder":
        lookup.require_folder(dataset, data_dir)
    if lookup.is_folder(dataset, data_dir):
        of_folder = folder_records.open_splits(lookup.folder_path(data_dir))
        for records in of_folder.values():
            records.check_files()
        ranges = {name: dataset.tfds_range(name) for name in SPLITS}
        return {
            name: Part(of_folder[official], start, stop - start)
            for name, (official, start, stop) in ranges.items()
        }
    builder = prepared.require(dataset, data_dir)
    splits = {name: Records(dataset, builder, name) for name in SPLITS}
    for split in splits.values():
        split.check_files()
    return dict(splits)


def load(examples: Examples, host_image: HostImage, *, skip_corrupt: bool) -> Arrays:
    """Reads a whole split into memory.

    Args:
      examples: the split.
      host_image: makes of each image the pixels that are kept.
      skip_corrupt: whether others stand in for examples that cannot be read.

    Raises:
      CorruptRecordError: one cannot be read, and none may stand in for it.
    """
    if isinstance(examples, Arrays):
        return examples
    found = [
        pair for chunk in _chunks(examples, host_image, skip_corrupt) for pair in chunk
    ]
    readable = [index for index, pair in enumerate(found) if pair is not None]
    if not readable:
        raise CorruptRecordError("No example can be read.")
    corrupt = tuple(index for index, pair in enumerate(found) if pair is None)
    for index in corrupt:
        following = bisect.bisect(readable, index) % len(readable)
        found[index] = found[readable[following]]
    images, labels = zip(*found, strict=True)
    return Arrays(np.stack(images), np.asarray(labels, np.int32), corrupt)


def _chunks(
    examples: Examples, host_image: HostImage, skip_corrupt: bool
) -> Iterator[list[tuple[np.ndarray, int] | None]]:
    """The pixels and labels of a split in order, some at a time, read by threads.

    None where an example cannot be read.
    """

    def read(start: int) -> list[tuple[np.ndarray, int] | None]:
        indices = range(start, min(start + _CHUNK, len(examples)))
        pairs: list[tuple[np.ndarray, int] | None] = []
        for index, example in zip(indices, examples.read(indices), strict=True):
            try:
                image = pixels(examples, index, example, host_image)
                pairs.append((image, example.label))
            except CorruptRecordError:
                if not skip_corrupt:
                    raise
                pairs.append(None)
        return pairs

    readers = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        ahead: collections.deque = collections.deque()
        for start in range(0, len(examples), _CHUNK):
            ahead.append(pool.submit(read, start))
            if len(ahead) > readers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def pixels(
    examples: Examples, index: int, example: Example, host_image: HostImage
) -> np.ndarray:
    """Returns the pixels of an example: [height, width, channels], uint8.

    Args:
      examples: the split that it is of.
      index: its place there.
      example: what was read there.
      host_image: makes pixels of its image.

    Raises:
      CorruptRecordError: it cannot be read; names the record.
    """
    if example.image is None:
        raise CorruptRecordError(f"{examples.where(index)} cannot be read.")
    try:
        return host_image(example.image)
    except (OSError, ValueError) as error:
        raise CorruptRecordError(f"{examples.where(index)}: {error}") from error


def statistics(
    dataset: Dataset, data_dir: str, host_image: HostImage
) -> tuple[list[float], list[float]]:
    """Computes mean and deviation of the training pixels, in [0, 1], per channel."""
    train = open_splits(dataset, data_dir)["train"]
    counts = np.zeros((dataset.channels, 256), np.int64)
    for chunk in _chunks(train, host_image, skip_corrupt=False):
        for image in (pair[0] for pair in chunk if pair):
            for channel in range(dataset.channels):
                values = image[..., channel].ravel()
                counts[channel] += np.bincount(values, minlength=256)
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
    train, validation, test = (dataset.splits[name] for name in SPLITS)
    ends = np.cumsum([train, dataset.unused, validation, test])
    train_part, _, *parts, _ = np.split(order, ends)
    return {
        name: Arrays(images[part], labels[part])
        for name, part in zip(SPLITS, (train_part, *parts), strict=True)
    }


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
