"""The images of a folder as records in files, written and read.

`folder/2.0.0` of a data directory holds `dataset.json` and one array_record file for
each split, whose records are a label, the name of the file that the image was, and the
file's bytes. Earlier versions wrote `folder/1.0.0` through TensorFlow Datasets.
"""

import hashlib
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

from etils import epath

from dresnet_jax.data import images, records
from dresnet_jax.data.image_folder import Found
from dresnet_jax.data.records import Example, Records, Shard
from dresnet_jax.errors import RunFailedError, UserError

ABOUT = "dataset.json"
_FIELDS = {"class_names": list, "splits": dict, "digest": str}
# A record begins with its label and the length of its file's name.
_HEAD = struct.Struct("<IH")
# Images that are read ahead of their use.
_AHEAD = 256


class UnreadableImageError(RunFailedError):
    """An image of the folder that is prepared cannot be read."""


def write(
    root: Path, result: Found, directory: epath.Path, *, skip_corrupt: bool
) -> None:
    """Writes the images of a directory as a dataset, whole or not at all.

    Each is decoded once, so that one that cannot be read is named here.

    Args:
      root: the directory.
      result: what `find` result there; files that are left out are counted there.
      directory: where the dataset will lie, a local one.
      skip_corrupt: whether images that cannot be read are left out.

    Raises:
      UnreadableImageError: an image cannot be read.
    """
    from array_record.python import array_record_module

    partial = Path(os.fspath(directory) + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    digest = hashlib.sha256(json.dumps(result.class_names).encode())
    try:
        for split, files in result.files.items():
            writer = array_record_module.ArrayRecordWriter(
                str(partial / f"{split}.array_record"), "group_size:1"
            )
            kept = []
            paths = (root / name for name, _ in files)
            contents = records.read_in_order(_read, paths, _AHEAD)
            for (name, label), data in zip(files, contents, strict=True):
                if isinstance(data, OSError):
                    why = data.strerror or str(data)
                    if not skip_corrupt:
                        raise UnreadableImageError(
                            f"{images.printable(name)} cannot be read: {why}. Mend or "
                            "remove it, or leave out such images with --skip_corrupt."
                        ) from data
                    result.left_out["images that cannot be read"] += 1
                    continue
                text = os.fsencode(name)
                record = _HEAD.pack(label, len(text)) + text + data
                digest.update(hashlib.sha256(record).digest())
                writer.write(record)
                kept.append((name, label))
            writer.close()
            result.files[split] = kept
            if not kept:
                raise UnreadableImageError(f"No image of {split} can be read.")
        about = {
            "class_names": result.class_names,
            "splits": {split: len(files) for split, files in result.files.items()},
            "digest": digest.hexdigest(),
        }
        (partial / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        partial.rename(os.fspath(directory))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(path: Path) -> bytes | OSError:
    """The bytes of an image, or why it is none."""
    try:
        data = path.read_bytes()
        images.decode(data, 3)
        return data
    except OSError as error:
        return error


def about(directory: epath.Path) -> dict[str, Any] | None:
    """Returns what `write` noted of a dataset; None where it wrote none.

    Raises:
      UserError: the note is damaged.
    """
    path = directory / ABOUT
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
        for field, kind in _FIELDS.items():
            if not isinstance(result.get(field), kind):
                raise ValueError(f"its {field} is {result.get(field)!r:.50}")
        names, counts = result["class_names"], result["splits"]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"its class_names is {names!r:.50}")
        if "train" not in counts or any(type(x) is not int for x in counts.values()):
            raise ValueError(f"its splits is {counts!r:.50}")
        return result
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: {error}. Prepare the folder again."
        ) from error


def open_splits(directory: epath.Path) -> dict[str, Records]:
    """Opens a dataset that `write` wrote, by the names of its own splits.

    Raises:
      UserError: it is damaged.
    """
    noted = about(directory)
    counts = noted["splits"] if noted else {}
    return {
        split: Records(
            (Shard(os.fspath(directory / f"{split}.array_record"), 0, count, count),),
            _parse,
            "Prepare the folder again.",
        )
        for split, count in counts.items()
    }


def _parse(record: bytes) -> tuple[str, Example]:
    """The name of the file that a record is of, and what it holds."""
    label, length = _HEAD.unpack_from(record)
    end = _HEAD.size + length
    name = images.printable(os.fsdecode(record[_HEAD.size : end]))
    return name, Example(record[end:], label)
