"""Whether a checkpoint's files are those that were written."""

import hashlib
import json
from collections.abc import Iterator

from etils import epath

# Written last, so that a checkpoint with it is finished: its step, and the SHA-256 of
# its every other file. Orbax itself notices some damage, but not a flipped byte, and
# reports it through many threads.
NAME = "sha256.json"


def write(checkpoint: epath.Path, step: int) -> None:
    """Marks a checkpoint as finished."""
    partial = checkpoint / (NAME + ".partial")
    partial.write_text(json.dumps({"step": step, "files": _digests(checkpoint)}))
    partial.replace(checkpoint / NAME)


def verify(checkpoint: epath.Path) -> None:
    """Reads every byte of a checkpoint.

    Raises:
      ValueError: names the first file that is not as it was written.
    """
    path = checkpoint / NAME
    if not path.is_file():
        raise ValueError(f"it is not finished, there is no {NAME}")
    try:
        record = json.loads(path.read_bytes())
        step, expected = record["step"], dict(record["files"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{NAME} is damaged") from error
    if str(step) != checkpoint.name:
        raise ValueError(f"it is that of step {step}")
    found = _digests(checkpoint)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise ValueError(f"{name} is missing")
        if name not in expected:
            raise ValueError(f"{name} was not written by the run")
        if found[name] != expected[name]:
            raise ValueError(f"{name} has changed since it was written")
    if not expected:
        raise ValueError(f"{NAME} names no file")


def _digests(checkpoint: epath.Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint, by its path inside it."""
    return {
        str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files(checkpoint)
        if not path.name.startswith(NAME)
    }


def files(directory: epath.Path) -> Iterator[epath.Path]:
    """Every file of a checkpoint, in the order of their paths."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield from files(path)
        else:
            yield path
