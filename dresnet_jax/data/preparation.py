"""Preparation of a dataset by TensorFlow Datasets, from the network or from archives.

The only code that needs TensorFlow, and only `prepare` calls it.
"""

import hashlib
import importlib.util
import struct
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from etils import epath

from dresnet_jax.data import catalog, lookup, prepared
from dresnet_jax.data.catalog import Dataset
from dresnet_jax.errors import UserError

# The times that stand in the headers of the original archives of Fashion-MNIST.
# Debian's package takes name and time out of the headers, which changes nothing in the
# data but every checksum; with them put back the files are the originals, bit for bit.
_ORIGINAL_TIMES = {
    "train-images-idx3-ubyte.gz": 1504176606,
    "train-labels-idx1-ubyte.gz": 1504176606,
    "t10k-images-idx3-ubyte.gz": 1504176627,
    "t10k-labels-idx1-ubyte.gz": 1504176627,
}


def prepare(dataset: Dataset, data_dir: str, from_dir: str | None) -> epath.Path:
    """Writes a dataset as array_record files; what is prepared already is kept.

    Args:
      dataset: what is prepared.
      data_dir: where prepared datasets lie.
      from_dir: directory of the original archives; None to fetch them.

    Returns:
      Where the dataset now lies.

    Raises:
      UserError: TensorFlow is missing, an archive is missing or is not the original,
        or archives that cannot be fetched are wanted from the network.
    """
    if not dataset.tfds_splits:
        raise UserError(f"{dataset.name} needs no preparation. {dataset.source}")
    builder, is_prepared = prepared.find(dataset.name, data_dir)
    if is_prepared:
        return builder.data_path
    if from_dir is None and builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise UserError(
            f"{dataset.name} cannot be fetched: --from_dir must be the directory of "
            f"{' and '.join(sorted(_checksums(builder)))}. {dataset.source}"
        )
    _require_tensorflow()
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as originals:
        if from_dir is not None:
            _collect(_checksums(builder), Path(from_dir), Path(originals))
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=originals if from_dir else None
            )
        )
    return builder.data_path


def prepare_folder(data_dir: str, from_dir: str | None) -> epath.Path:
    """Writes a directory of class/image files as the dataset `folder`.

    Args:
      data_dir: where prepared datasets lie; it can hold one folder.
      from_dir: has a directory per class, or those of the splits train, validation (or
        val) and test, which have them.

    Returns:
      Where the dataset now lies.

    Raises:
      UserError: TensorFlow is missing, there are no images, or another folder is
        prepared there.
    """
    path = lookup.folder_path(data_dir)
    if path.exists():
        raise UserError(
            f"{path} exists: delete it, or give another --data_dir, which is "
            "config.data.data_dir in training."
        )
    if from_dir is None:
        raise UserError("folder needs --from_dir: the directory of class/image files.")
    _require_tensorflow()
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as root:
        for name, images in _split_directories(Path(from_dir).expanduser()).items():
            (Path(root) / name).symlink_to(images.resolve())
        folder = tfds.ImageFolder(root)
        _check_classes(from_dir, folder.info)
        builder = tfds.dataset_builders.store_as_tfds_dataset(
            name=path.parent.name,
            version=path.name,
            features=folder.info.features,
            split_datasets={
                # The files as they are.
                name: folder.as_dataset(
                    split=name, decoders={"image": tfds.decode.SkipDecoding()}
                )
                for name in folder.info.splits
            },
            data_dir=path.parent.parent,
            file_format="array_record",
        )
    return builder.data_path


def _split_directories(root: Path) -> dict[str, Path]:
    """The directory of each split; all of it for training where none is named so."""
    if not root.is_dir():
        raise UserError(f"--from_dir={root} is not a directory.")
    names = {name: name for name in catalog.SPLITS} | {"val": "validation"}
    found: dict[str, Path] = {}
    for path in root.iterdir():
        if path.name not in names:
            continue
        if names[path.name] in found:
            raise UserError(f"{root} has both val and validation: keep one of them.")
        found[names[path.name]] = path
    return found if "train" in found else {"train": root}


def _check_classes(from_dir: str, info: Any) -> None:
    count = {name: split.num_examples for name, split in info.splits.items()}
    if min(count.get("train", 0), info.features["label"].num_classes) < 2:
        raise UserError(
            f"{from_dir} holds no directories of images, one for each class: there are "
            f"{info.features['label'].num_classes} classes, {count or 'no images'}."
        )


def _require_tensorflow() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            "Preparation needs TensorFlow: pip install -r requirements-prepare.txt"
        )


def _checksums(builder: Any) -> dict[str, str]:
    """The SHA-256 of each archive that TFDS registers, by its name."""
    return {
        info.filename or PurePosixPath(url).name: info.checksum
        for url, info in builder.url_infos.items()
    }


def _collect(checksums: dict[str, str], from_dir: Path, originals: Path) -> None:
    """Puts each archive, checked, into `originals`."""
    for name, checksum in checksums.items():
        path = from_dir.expanduser() / name
        if not path.exists():
            names = ", ".join(sorted(checksums))
            raise UserError(f"{path} does not exist: wanted are {names}.")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        target = originals / name
        if found == checksum:
            target.symlink_to(path.resolve())
            continue
        restored = _with_original_header(path)
        if hashlib.sha256(restored).hexdigest() != checksum:
            raise UserError(
                f"{path} is not the original archive: its SHA-256 is {found}, "
                f"registered is {checksum}."
            )
        target.write_bytes(restored)


def _with_original_header(path: Path) -> bytes:
    """A gzip file with the name and time that its header had; empty if unknown."""
    if path.name not in _ORIGINAL_TIMES:
        return b""
    data = path.read_bytes()
    time = struct.pack("<I", _ORIGINAL_TIMES[path.name])
    name = path.name.removesuffix(".gz").encode() + b"\0"
    return b"\x1f\x8b\x08\x08" + time + data[8:10] + name + data[10:]
