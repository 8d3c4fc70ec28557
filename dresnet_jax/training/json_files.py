"""JSON files that are there whole or not at all."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from dresnet_jax.errors import UserError


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Returns the JSON objects of a file, one a line; none where there is no file.

    Raises:
      UserError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def write_lines(path: epath.Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Writes a file of one JSON object a line, there whole or not at all."""
    _write_whole(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file that is there whole or not at all."""
    _write_whole(path, json.dumps(value, indent=2) + "\n")


def _write_whole(path: epath.Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
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
