"""Tiny ImageNet for TensorFlow Datasets, which does not have it.

Importing this registers the builder `tiny_imagenet`, also to read what it prepared,
which needs no TensorFlow. The archive's size and SHA-256 are in `checksums.tsv`, where
TensorFlow Datasets looks for them.
"""

import contextlib
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from dresnet_jax.data.catalog import DATASETS, TINY_IMAGENET_CLASSES
from dresnet_jax.errors import UserError

_ARCHIVE = "tiny-imagenet-200.zip"
_URL = f"http://cs231n.stanford.edu/{_ARCHIVE}"
_ROOT = "tiny-imagenet-200"
_TRAINING_IMAGE = re.compile(rf"{_ROOT}/train/(\w+)/images/\w+\.JPEG")


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """200 classes of ImageNet at 64 pixels: 100,000 train, 10,000 validation images.

    The test split has no labels, and is left out.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = {
            # The archive's files, byte for byte. Some are gray; readers give those
            # three equal channels.
            "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(TINY_IMAGENET_CLASSES)),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            citation=DATASETS["tiny_imagenet"].citation,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        path = dl_manager.download(_URL)
        with _opened(path) as archive:
            _require_all_classes(_text(archive, "wnids.txt").split(), "wnids.txt")
            train = _training_labels(archive)
            validation = _validation_labels(archive)
        return {
            "train": self._generate_examples(path, train),
            "validation": self._generate_examples(path, validation),
        }

    def _generate_examples(
        self, path: epath.PathLike, labels: dict[str, str]
    ) -> Iterator[tuple[str, dict]]:
        with _opened(path) as archive:
            for name, label in labels.items():
                file_name = name.rpartition("/")[2]
                image = archive.read(name)
                example = {"image": image, "label": label, "file_name": file_name}
                yield file_name, example


@contextlib.contextmanager
def _opened(path: epath.PathLike) -> Iterator[zipfile.ZipFile]:
    with epath.Path(path).open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise UserError(f"{_ARCHIVE} cannot be read: {error}.") from error
        with archive:
            yield archive


def _training_labels(archive: zipfile.ZipFile) -> dict[str, str]:
    """The class of each training image, by its name in the archive."""
    matches = filter(None, map(_TRAINING_IMAGE.fullmatch, archive.namelist()))
    labels = {match[0]: match[1] for match in matches}
    _require_all_classes(labels.values(), "train/")
    return labels


def _validation_labels(archive: zipfile.ZipFile) -> dict[str, str]:
    """The class of each validation image, by its name in the archive."""
    lines = _text(archive, "val/val_annotations.txt").splitlines()
    # A line is file, class and the corners of a box, between tabs.
    pairs = (line.split("\t")[:2] for line in lines)
    labels = {f"{_ROOT}/val/images/{file}": label for file, label in pairs}
    _require_all_classes(labels.values(), "val/val_annotations.txt")
    for name in labels.keys() - set(archive.namelist()):
        raise UserError(f"{_ARCHIVE} lacks {name}, which val_annotations.txt names.")
    return labels


def _text(archive: zipfile.ZipFile, name: str) -> str:
    try:
        return archive.read(f"{_ROOT}/{name}").decode()
    except KeyError as error:
        raise UserError(f"{_ARCHIVE} lacks {_ROOT}/{name}.") from error


def _require_all_classes(result: Iterable[str], where: str) -> None:
    classes = TINY_IMAGENET_CLASSES.keys()
    wrong = [f"without {wnid}" for wnid in sorted(classes - set(result))]
    wrong += [f"with {wnid}" for wnid in sorted(set(result) - classes)]
    if wrong:
        raise UserError(
            f"{_ARCHIVE} does not have the 200 classes of Tiny ImageNet: {where} is "
            f"{', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}."
        )
