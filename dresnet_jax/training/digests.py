"""Whether a checkpoint's files are those that were written."""

import hashlib
import json
import time
from collections.abc import Iterator

from etils import epath

from dresnet_jax.training import json_files, workdir

# Written last, so that a checkpoint with it is finished: its step, and the SHA-256 of
# its every other file. Orbax itself notices some damage, but not a flipped byte, and
# reports it through many threads.
NAME = "sha256.json"

# Seconds before a file is read once more that could not be read; network file systems
# lose sight of one for a moment.
_PAUSES = (0.1, 0.4, 1.0)


def write(checkpoint: epath.Path, step: int) -> None:
    """Marks a checkpoint as finished."""
    text = json.dumps({"step": step, "files": _digests(checkpoint)})
    json_files.write_text(checkpoint / NAME, text)


def verify(checkpoint: epath.Path) -> None:
    """Reads every byte that was written of a checkpoint; other files do not count.

    Raises:
      ValueError: names the first file that is not as it was written.
      OSError: a file is there and could not be read, several times.
    """
    try:
        record = json.loads(_read(checkpoint / NAME))
        step, expected = record["step"], dict(record["files"])
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ValueError(f"it is not finished, there is no {NAME}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{NAME} is damaged") from error
    if str(step) != checkpoint.name:
        raise ValueError(f"it is that of step {step}")
    if not expected:
        raise ValueError(f"{NAME} names no file")
    for name, digest in sorted(expected.items()):
        try:
            result = hashlib.sha256(_read(checkpoint / name)).hexdigest()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ValueError(f"{name} is missing") from None
        if result != digest:
            raise ValueError(f"{name} has changed since it was written")


def _read(path: epath.Path) -> bytes:
    for pause in _PAUSES:
        try:
            return path.read_bytes()
        except (IsADirectoryError, NotADirectoryError):
            raise
        except OSError:
            time.sleep(pause)
    return path.read_bytes()


def _digests(checkpoint: epath.Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint, by its path inside it."""
    return {
        str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files(checkpoint)
        if not path.name.startswith(NAME)
    }


def files(directory: epath.Path) -> Iterator[epath.Path]:
    """Yields every file of a checkpoint, in the order of their paths."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield from files(path)
        elif not workdir.is_stray(path):
            yield path
