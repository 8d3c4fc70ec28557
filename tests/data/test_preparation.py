"""Real archives become a prepared dataset; anything else is refused."""

import gzip
import importlib.util

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
