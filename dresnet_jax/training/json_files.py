"""JSON files that are there whole or not at all."""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from dresnet_jax.errors import UserError


@contextlib.contextmanager
def reading(path: epath.Path) -> Iterator[None]:
    """Raises a UserError that names the file, if what is read inside is damaged."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Returns the JSON objects of a file, one a line; none where there is no file.

    Raises:
      UserError: the file is damaged.
    """
    if not path.exists():
        return []
    with reading(path):
        return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: epath.Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of one JSON object a line, there whole or not at all."""
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file that is there whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: epath.Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, data: bytes) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def finite(value: Any) -> Any:
    """Returns the same with None for what is no finite number, which JSON has not."""
    if isinstance(value, dict):
        return {str(name): finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
