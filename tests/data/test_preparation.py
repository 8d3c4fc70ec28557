"""Real archives become a prepared dataset; anything else is refused."""

import gzip
import importlib.util

import numpy as np
import pytest

from dresnet_jax.data import catalog, preparation, prepared, sources, views
from dresnet_jax.errors import UserError
from tests.conftest import FASHION_MNIST_ARCHIVES as ARCHIVES
from tests.data import archives
from tests.data.archives import needs_tensorflow

FASHION_MNIST = catalog.DATASETS["fashion_mnist"]

needs_archives = pytest.mark.skipif(
    not ARCHIVES.exists(), reason="Debian's package dataset-fashion-mnist is missing"
)


@pytest.mark.slow
def test_real_archives_become_the_images_they_hold(fashion_mnist):
    splits = archives.loaded(FASHION_MNIST, fashion_mnist)
    counts = {name: len(split) for name, split in splits.items()}
    assert counts == FASHION_MNIST.splits
    with gzip.open(ARCHIVES / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read()[16:], np.uint8).reshape(10_000, 28, 28)
    # TFDS shuffles; the multiset of images stays.
    result = sorted(image.tobytes() for image in splits["test"].images)
    assert result == sorted(image.tobytes() for image in images)

    view = views.View(28, 1, fixed_size=True)
    mean, std = sources.statistics(FASHION_MNIST, fashion_mnist, view.evaluate)
    assert (tuple(mean), tuple(std)) == (FASHION_MNIST.mean, FASHION_MNIST.std)

    again = preparation.prepare(FASHION_MNIST, fashion_mnist, from_dir=None)
    assert str(again).startswith(fashion_mnist)


@needs_archives
@needs_tensorflow
def test_an_archive_that_is_not_the_original_names_both_sums(tmp_path):
    for path in ARCHIVES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"its SHA-256 is \w{64}, registered is \w{64}"):
        preparation.prepare(FASHION_MNIST, str(tmp_path / "data"), str(tmp_path))
    with pytest.raises(UserError, match="is not prepared"):
        sources.open_splits(FASHION_MNIST, str(tmp_path / "data"))


@needs_tensorflow
def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(UserError, match=r"ubyte.gz does not exist: t10k"):
        preparation.prepare(FASHION_MNIST, str(tmp_path / "data"), str(tmp_path))


def test_without_tensorflow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-prepare.txt"):
        preparation.prepare(FASHION_MNIST, str(tmp_path), None)


def test_a_dataset_that_needs_no_preparation_says_so(tmp_path):
    with pytest.raises(UserError, match="digits needs no preparation"):
        preparation.prepare(catalog.DATASETS["digits"], str(tmp_path), None)


def test_a_dataset_that_is_not_prepared_says_how_to(tmp_path):
    command = "python -m dresnet_jax.prepare --dataset=fashion_mnist --data_dir="
    with pytest.raises(UserError, match=command):
        sources.open_splits(FASHION_MNIST, str(tmp_path))


def test_data_of_another_version_is_not_used(tmp_path):
    (tmp_path / "fashion_mnist" / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"fashion_mnist 3.0.1 is not .* holds 1.0.0"):
        sources.open_splits(FASHION_MNIST, str(tmp_path))


def pairs(found_labels, found_images):
    return sorted(
        (int(label), image.tobytes())
        for label, image in zip(found_labels, found_images, strict=True)
    )


@needs_tensorflow
def test_cifars_format_is_read_by_the_real_builder(tmp_path, monkeypatch):
    labels, images = archives.cifar10(tmp_path)
    dataset = archives.small("cifar10", train=90, validation=10, test=20)
    data_dir = str(tmp_path / "data")
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz is not the original"):
        preparation.prepare(dataset, data_dir, str(tmp_path))

    builder, _ = prepared.find(dataset.name, data_dir)
    archives.register(monkeypatch, builder, tmp_path)
    preparation.prepare(dataset, data_dir, str(tmp_path))

    splits = archives.loaded(dataset, data_dir)
    assert [len(splits[name].labels) for name in catalog.SPLITS] == [90, 10, 20]

    test = splits["test"]
    assert pairs(test.labels, test.images) == pairs(labels[5], images[5])
    train = [splits["train"], splits["validation"]]
    assert pairs(
        np.concatenate([split.labels for split in train]),
        np.concatenate([split.images for split in train]),
    ) == pairs(labels[:5].reshape(-1), images[:5].reshape(-1, 32, 32, 3))


@needs_tensorflow
def test_svhns_format_is_read_by_the_real_builder(tmp_path, monkeypatch):
    stored = archives.svhn_cropped(tmp_path)
    dataset = archives.small("svhn_cropped", train=15, validation=5, test=10)
    data_dir = str(tmp_path / "data")
    builder, _ = prepared.find(dataset.name, data_dir)
    archives.register(monkeypatch, builder, tmp_path)
    preparation.prepare(dataset, data_dir, str(tmp_path))
    splits = archives.loaded(dataset, data_dir)
    assert pairs(splits["test"].labels, splits["test"].images) == pairs(*stored["test"])
    train = [splits["train"], splits["validation"]]
    assert pairs(
        np.concatenate([split.labels for split in train]),
        np.concatenate([split.images for split in train]),
    ) == pairs(*stored["train"])


IMAGENET = archives.small("imagenet2012", train=5, validation=1, test=3)


def test_archives_that_cannot_be_fetched_are_named(tmp_path):
    archive_names = (
        r"ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar\. 145 GB: register"
    )
    with pytest.raises(UserError, match=rf"--from_dir must be .* {archive_names}"):
        preparation.prepare(IMAGENET, str(tmp_path), None)


@needs_tensorflow
def test_imagenets_archives_are_both_needed_and_the_originals(tmp_path):
    archives.imagenet2012(tmp_path, ["n01440764"])
    with pytest.raises(UserError, match=r"train.tar is not the original archive"):
        preparation.prepare(IMAGENET, str(tmp_path / "data"), str(tmp_path))
    (tmp_path / "ILSVRC2012_img_train.tar").unlink()
    with pytest.raises(UserError, match=r"img_train.tar does not exist: .* are needed"):
        preparation.prepare(IMAGENET, str(tmp_path / "data"), str(tmp_path))


@needs_tensorflow
def test_imagenets_format_is_read_by_the_real_builder(tmp_path, monkeypatch):
    wnids = ["n02119789", "n01440764", "n15075141"]
    train, held_out = archives.imagenet2012(tmp_path, wnids)
    data_dir = str(tmp_path / "data")
    builder, _ = prepared.find(IMAGENET.name, data_dir)
    archives.register(monkeypatch, builder, tmp_path)
    preparation.prepare(IMAGENET, data_dir, str(tmp_path))

    builder, _ = prepared.find(IMAGENET.name, data_dir)
    wnid = builder.info.features["label"].int2str

    def check(split, files):
        result = builder.as_data_source(split=split)
        assert len(result) == len(files)
        for example in result:
            data = files[example["file_name"].decode()]
            np.testing.assert_array_equal(example["image"], archives.decoded(data))

    check("train", train)
    check("validation", held_out)
    for example in builder.as_data_source(split="train"):
        assert example["file_name"].decode().startswith(wnid(example["label"]))
    # The builder knows the validation images' labels, in the order of their names.
    labels = {
        example["file_name"].decode(): wnid(example["label"])
        for example in builder.as_data_source(split="validation")
    }
    assert [labels[name] for name in sorted(labels)] == [
        "n01751748",
        "n09193705",
        "n02105855",
    ]
