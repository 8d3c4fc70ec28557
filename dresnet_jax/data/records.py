"""Examples in array_record files, whoever wrote them."""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dresnet_jax.errors import UserError

T = TypeVar("T")
Result = TypeVar("Result")


def read_in_order(
    read: Callable[[T], Result], items: Iterable[T], ahead: int
) -> Iterator[Result]:
    """Reads each item, in order; threads are up to some items ahead of their use."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Example(NamedTuple):
    """One example, as it is stored.

    Attributes:
      image: [height, width, channels] uint8, or the bytes of an encoded image; None
        where the record cannot be read.
      label: of its class.
    """

    image: np.ndarray | bytes | None
    label: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some records of a file; a `FileInstruction` of TFDS has the same fields.

    Attributes:
      filename: its path.
      skip: records before the first.
      take: how many.
      examples_in_shard: records of the whole file.
    """

    filename: str
    skip: int
    take: int
    examples_in_shard: int


@dataclasses.dataclass(frozen=True)
class Records:
    """The examples of a split, or of a part of one.

    Attributes:
      shards: where they are, one shard after the other.
      parse: returns the example of a record, and the record's name, "" for none.
      remedy: what a person does about a file that is damaged.
    """

    shards: tuple[Shard, ...]
    parse: Callable[[bytes], tuple[str, Example]]
    remedy: str

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        # Open files are left out when a worker process gets a copy.
        return {field: self.__dict__[field] for field in self.__dataclass_fields__}

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some places."""
        try:
            # array_record reads no empty list.
            result = self._source.__getitems__(indices) if indices else []
            return [self.parse(record)[1] for record in result]
        except RuntimeError:
            # array_record does not say which; one of them is unreadable.
            return [self._read_alone(index)[1] for index in indices]

    def _read_alone(self, index: int) -> tuple[str, Example]:
        try:
            return self.parse(self._source[index])
        except RuntimeError:
            return "", Example(None, 0)

    def where(self, index: int) -> str:
        """Names the record of a place, by its file where it has no name."""
        if name := self._read_alone(index)[0]:
            return name
        (shard,) = self.part(index, index + 1).shards
        return f"record {shard.skip} of {shard.filename}"

    def part(self, start: int, stop: int) -> "Records":
        """Returns the examples from one place up to another."""
        shards, before = [], 0
        for shard in self.shards:
            first, last = max(start - before, 0), min(stop - before, shard.take)
            if first < last:
                skip, take = shard.skip + first, last - first
                shards.append(dataclasses.replace(shard, skip=skip, take=take))
            before += shard.take
        return dataclasses.replace(self, shards=tuple(shards))

    def check_files(self) -> None:
        """Opens every file.

        Raises:
          UserError: a file is missing or not whole; names it.
        """
        from array_record.python import array_record_module

        def check(shard: Shard) -> None:
            try:
                reader = array_record_module.ArrayRecordReader(shard.filename)
                result = reader.num_records() if reader.ok() else 0
                reader.close()
            except RuntimeError:
                result = 0
            if result != shard.examples_in_shard:
                raise UserError(
                    f"{shard.filename} is truncated or missing: it has {result} of "
                    f"{shard.examples_in_shard} records. {self.remedy}"
                )

        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(check, self.shards))

    @functools.cached_property
    def _count(self) -> int:
        return sum(shard.take for shard in self.shards)

    @functools.cached_property
    def _source(self) -> Any:
        from array_record.python import array_record_data_source

        return array_record_data_source.ArrayRecordDataSource(self.shards)
