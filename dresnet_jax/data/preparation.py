"""Preparation of a dataset, by TensorFlow Datasets or of your own images.

The only code that needs TensorFlow, and only `prepare` calls it.
"""

import hashlib
import importlib.util
import struct
import tempfile
from pathlib import Path, PurePosixPath

from etils import epath

from dresnet_jax.data import folder_records, image_folder, lookup, prepared
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
    """Writes a dataset as array_record files, and returns where it lies.

    What is prepared already is kept. `from_dir` is the directory of the original
    archives; with None they are fetched.

    Raises:
      UserError: TensorFlow is missing, an archive is missing or is not the original,
        or archives that cannot be fetched are to come from the network.
    """
    if not dataset.tfds_splits:
        raise UserError(f"{dataset.name} needs no preparation. {dataset.source}")
    builder, is_prepared = prepared.find(dataset.name, data_dir)
    if is_prepared:
        return builder.data_path
    # The SHA-256 of each archive that TFDS registers, by its name.
    checksums = {
        info.filename or PurePosixPath(url).name: info.checksum
        for url, info in (builder.url_infos or {}).items()
    }
    if from_dir is None and builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise UserError(
            f"{dataset.name} cannot be fetched: --from_dir must be the directory of "
            f"{' and '.join(sorted(checksums))}. {dataset.source}"
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            "Preparation needs TensorFlow: pip install -r requirements-prepare.txt"
        )
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as originals:
        if from_dir is not None:
            _collect(checksums, Path(from_dir), Path(originals))
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=originals if from_dir else None
            )
        )
    return builder.data_path


def prepare_folder(
    data_dir: str, from_dir: str | None, *, skip_corrupt: bool
) -> tuple[epath.Path, image_folder.Found]:
    """Writes a directory of class/image files as the dataset `folder`.

    Args:
      data_dir: where prepared datasets lie; it can hold one folder.
      from_dir: has a directory per class, or those of the splits train, validation and
        test, which have them.
      skip_corrupt: whether images that cannot be read are left out.

    Returns:
      Where the dataset now lies, and what is in it.

    Raises:
      UserError: there are no images, or not such ones as make a dataset, or another
        folder is prepared there.
      UnreadableImageError: an image cannot be read.
    """
    if "://" in data_dir:
        raise UserError(
            f"--data_dir={data_dir}: prepare a folder in a local directory, and copy "
            "that."
        )
    path = lookup.folder_path(data_dir)
    for there in (path, lookup.earlier_folder_path(data_dir)):
        if there.exists():
            raise UserError(
                f"{there} exists: choose another --data_dir, which is "
                "config.data.data_dir in training, or move it away."
            )
    if from_dir is None:
        raise UserError("folder needs --from_dir: the directory of class/image files.")
    root = Path(from_dir).expanduser()
    result = image_folder.find(root)
    folder_records.write(root, result, path, skip_corrupt=skip_corrupt)
    return path, result


def _collect(checksums: dict[str, str], from_dir: Path, originals: Path) -> None:
    """Puts each archive, checked, into `originals`."""
    for name, checksum in checksums.items():
        path = from_dir.expanduser() / name
        if not path.exists():
            names = ", ".join(sorted(checksums))
            raise UserError(f"{path} does not exist: {names} are needed.")
        with path.open("rb") as file:
            result = hashlib.file_digest(file, "sha256").hexdigest()
        target = originals / name
        if result == checksum:
            target.symlink_to(path.resolve())
            continue
        restored = _with_original_header(path)
        if hashlib.sha256(restored).hexdigest() != checksum:
            raise UserError(
                f"{path} is not the original archive: its SHA-256 is {result}, "
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
