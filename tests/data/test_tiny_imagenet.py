"""Tiny ImageNet's archive becomes the images and labels it holds."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dresnet_jax.data import preparation, prepared
from dresnet_jax.data.catalog import TINY_IMAGENET_CLASSES as NAMES
from dresnet_jax.errors import UserError
from tests.data import archives
from tests.data.archives import needs_tensorflow

WNIDS = "tiny-imagenet-200/wnids.txt"
ANNOTATIONS = "tiny-imagenet-200/val/val_annotations.txt"
FILES = archives.tiny_imagenet_files(per_class=2)
DATASET = archives.small("tiny_imagenet", train=350, validation=50, test=200)


def write(directory, files, monkeypatch):
    """An archive of these files, registered as the one that is expected."""
    archives.tiny_imagenet(directory, files)
    builder, _ = prepared.find(DATASET.name, str(directory / "data"))
    archives.register(monkeypatch, builder, directory)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The data directory of a small Tiny ImageNet."""
    directory = tmp_path_factory.mktemp("tiny_imagenet")
    with pytest.MonkeyPatch.context() as monkeypatch:
        write(directory, FILES, monkeypatch)
        preparation.prepare(DATASET, str(directory / "data"), str(directory))
    return str(directory / "data")


def examples(data_dir, split):
    """The examples of a split by their file name."""
    builder, _ = prepared.find(DATASET.name, data_dir)
    source = builder.as_data_source(split=split)
    return {example["file_name"].decode(): example for example in source}


def gray_and_coloured(result):
    equal = [(image == image[..., :1]).all() for image in result]
    return equal.count(True), equal.count(False)


@needs_tensorflow
def test_training_images_have_the_class_of_their_folder(data_dir):
    result = examples(data_dir, "train")
    assert len(result) == 400
    for name, data in FILES.items():
        if name.startswith("tiny-imagenet-200/train/") and name.endswith(".JPEG"):
            example = result[Path(name).name]
            np.testing.assert_array_equal(example["image"], archives.decoded(data))
            assert example["label"] == sorted(NAMES).index(name.split("/")[2])
    assert gray_and_coloured(e["image"] for e in result.values()) == (1, 399)


@needs_tensorflow
def test_validation_images_have_the_class_of_their_annotation(data_dir):
    result = examples(data_dir, "validation")
    lines = FILES[ANNOTATIONS].decode().splitlines()
    assert len(result) == len(lines) == 200
    for line in lines:
        name, wnid = line.split("\t")[:2]
        data = FILES[f"tiny-imagenet-200/val/images/{name}"]
        np.testing.assert_array_equal(result[name]["image"], archives.decoded(data))
        assert result[name]["label"] == sorted(NAMES).index(wnid)
    assert gray_and_coloured(e["image"] for e in result.values()) == (1, 199)


@needs_tensorflow
def test_labels_are_the_sorted_classes(data_dir):
    builder, _ = prepared.find(DATASET.name, data_dir)
    names = builder.info.features["label"].names
    assert names == sorted(FILES[WNIDS].decode().split())
    assert names != FILES[WNIDS].decode().split()


@needs_tensorflow
def test_reading_needs_no_tensorflow(data_dir):
    program = f"""
import sys
from tests.data import archives
from tests.data.test_tiny_imagenet import DATASET
splits = archives.loaded(DATASET, {data_dir!r})
print([splits[name].images.shape for name in ("train", "validation", "test")])
print("tensorflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    shapes = "[(350, 64, 64, 3), (50, 64, 64, 3), (200, 64, 64, 3)]"
    assert done.stdout.splitlines() == [shapes, "False"]


@needs_tensorflow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({WNIDS: None}, f"lacks {WNIDS}"),
        ({ANNOTATIONS: None}, f"lacks {ANNOTATIONS}"),
        (
            {WNIDS: FILES[WNIDS].replace(b"n01443537\n", b"n00000001\n")},
            r"200 classes .*: wnids.txt is without n01443537, with n00000001",
        ),
        (
            {
                f"tiny-imagenet-200/train/n01443537/images/n01443537_{i}.JPEG": None
                for i in range(2)
            },
            r"200 classes .*: train/ is without n01443537",
        ),
        (
            {ANNOTATIONS: FILES[ANNOTATIONS].partition(b"\n")[2]},
            r"200 classes .*: val/val_annotations.txt is without n\d{8}\.",
        ),
        (
            {"tiny-imagenet-200/val/images/val_7.JPEG": None},
            "lacks tiny-imagenet-200/val/images/val_7.JPEG, which val_annotations",
        ),
    ],
)
def test_another_archive_is_refused(tmp_path, monkeypatch, changes, message):
    files = {name: data for name, data in (FILES | changes).items() if data is not None}
    write(tmp_path, files, monkeypatch)
    with pytest.raises(UserError, match=message) as caught:
        preparation.prepare(DATASET, str(tmp_path / "data"), str(tmp_path))
    assert "\n" not in str(caught.value)


@needs_tensorflow
def test_what_is_no_zip_is_refused(tmp_path, monkeypatch):
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"no zip")
    builder, _ = prepared.find(DATASET.name, str(tmp_path / "data"))
    archives.register(monkeypatch, builder, tmp_path)
    with pytest.raises(UserError, match=r"200.zip cannot be read: File is not a zip"):
        preparation.prepare(DATASET, str(tmp_path / "data"), str(tmp_path))


@needs_tensorflow
def test_the_official_archive_is_the_registered_one(tmp_path):
    archives.tiny_imagenet(tmp_path, FILES)
    with pytest.raises(UserError, match=r"registered is 6198c8ae015e2b3e"):
        preparation.prepare(DATASET, str(tmp_path / "data"), str(tmp_path))
