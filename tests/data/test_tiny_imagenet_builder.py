"""TensorFlow Datasets' own tests of a builder, of Tiny ImageNet's."""

import tempfile
from pathlib import Path

import pytest

from tests.data import archives

# What TFDS's tests import, beyond what this package needs.
pytest.importorskip("tensorflow", reason="requirements-prepare.txt is not installed")
pytest.importorskip("dill", reason="dill, which TFDS's tests import, is not installed")

import tensorflow_datasets as tfds

from dresnet_jax.data import tiny_imagenet


class TestBuilder(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = tiny_imagenet.TinyImagenet
    SPLITS = {"train": 200, "validation": 200}  # noqa: RUF012
    DL_DOWNLOAD_RESULT = "tiny-imagenet-200.zip"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        directory = cls.enterClassContext(tempfile.TemporaryDirectory())
        archives.tiny_imagenet(Path(directory), archives.tiny_imagenet_files())
        cls.EXAMPLE_DIR = directory
