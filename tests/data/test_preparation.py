"""Real archives become a prepared dataset; anything else is refused."""

import dataclasses
import gzip
import hashlib
import importlib.util
import io
import tarfile

import numpy as np
import pytest
from etils import epath

from dresnet_jax.data import catalog, preparation, sources
from dresnet_jax.errors import UserError

ARCHIVES = epath.Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST = catalog.DATASETS["fashion_mnist"]

needs_archives = pytest.mark.skipif(
    not ARCHIVES.exists(), reason="Debian's package dataset-fashion-mnist is missing"
)
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="requirements-prepare.txt is not installed",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The data directory of Fashion-MNIST, prepared by TFDS's own builder."""
    directory = str(tmp_path_factory.mktemp("data"))
    preparation.prepare(FASHION_MNIST, directory, str(ARCHIVES))
    return directory


@needs_archives
@needs_tensorflow
@pytest.mark.slow
def test_real_archives_become_the_images_they_hold(prepared):
    splits = sources.load(FASHION_MNIST, prepared)
    counts = {name: len(split.labels) for name, split in splits.items()}
    assert counts == FASHION_MNIST.splits
    with gzip.open(ARCHIVES / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read()[16:], np.uint8).reshape(10_000, 28, 28)
    # TFDS shuffles; the multiset of images stays.
    found = sorted(image.tobytes() for image in splits["test"].images)
    assert found == sorted(image.tobytes() for image in images)

    mean, std = sources.statistics(FASHION_MNIST, prepared)
    assert (tuple(mean), tuple(std)) == (FASHION_MNIST.mean, FASHION_MNIST.std)

    again = preparation.prepare(FASHION_MNIST, prepared, from_dir=None)
    assert str(again).startswith(prepared)


@needs_archives
@needs_tensorflow
def test_an_archive_that_is_not_the_original_names_both_sums(tmp_path):
    for path in ARCHIVES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"its SHA-256 is \w{64}, registered is \w{64}"):
        preparation.prepare(FASHION_MNIST, str(tmp_path / "data"), str(tmp_path))
    with pytest.raises(UserError, match="is not prepared"):
        sources.load(FASHION_MNIST, str(tmp_path / "data"))


@needs_tensorflow
def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(UserError, match=r"ubyte.gz does not exist: wanted are t10k"):
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
        sources.load(FASHION_MNIST, str(tmp_path))


def test_data_of_another_version_is_not_used(tmp_path):
    (tmp_path / "fashion_mnist" / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"fashion_mnist 3.0.1 is not .* holds 1.0.0"):
        sources.load(FASHION_MNIST, str(tmp_path))


def cifar10_archive(directory):
    """A small archive in the official format; returns its labels and images."""
    random = np.random.RandomState(0)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    labels = random.randint(10, size=(6, 20)).astype(np.uint8)
    # [file, example, channel, row, column], as CIFAR stores them.
    images = random.randint(256, size=(6, 20, 3, 32, 32)).astype(np.uint8)
    with tarfile.open(directory / "cifar-10-binary.tar.gz", "w:gz") as archive:

        def add(name, data):
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))

        for name, file_labels, file_images in zip(names, labels, images, strict=True):
            records = [file_labels[:, None], file_images.reshape(20, -1)]
            add(name, np.concatenate(records, axis=1).tobytes())
        classes = catalog.DATASETS["cifar10"].class_names
        add("batches.meta.txt", "\n".join(classes).encode())
    return labels, images.transpose(0, 1, 3, 4, 2)


@needs_tensorflow
@pytest.mark.slow
def test_cifars_format_is_read_by_the_real_builder(tmp_path, monkeypatch):
    labels, images = cifar10_archive(tmp_path)
    dataset = dataclasses.replace(
        catalog.DATASETS["cifar10"],
        tfds_splits={"train": "train[:90]", "validation": "train[90:]", "test": "test"},
    )
    data_dir = str(tmp_path / "data")
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz is not the original"):
        preparation.prepare(dataset, data_dir, str(tmp_path))

    builder, _ = sources.tfds_builder(dataset, data_dir)
    ((url, info),) = builder.url_infos.items()
    archive = tmp_path / info.filename
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    own = dataclasses.replace(info, checksum=checksum, size=archive.stat().st_size)
    monkeypatch.setattr(type(builder), "url_infos", {url: own})
    preparation.prepare(dataset, data_dir, str(tmp_path))

    splits = sources.load(dataset, data_dir)
    assert [len(splits[name].labels) for name in catalog.SPLITS] == [90, 10, 20]

    def pairs(found_labels, found_images):
        return sorted(
            (int(label), image.tobytes())
            for label, image in zip(found_labels, found_images, strict=True)
        )

    test = splits["test"]
    assert pairs(test.labels, test.images) == pairs(labels[5], images[5])
    train = [splits["train"], splits["validation"]]
    assert pairs(
        np.concatenate([split.labels for split in train]),
        np.concatenate([split.images for split in train]),
    ) == pairs(labels[:5].reshape(-1), images[:5].reshape(-1, 32, 32, 3))
