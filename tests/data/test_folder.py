"""A person's own images become a dataset, and are trained on."""

import numpy as np
import pytest
from etils import epath

from configs import folder
from dresnet_jax.data import catalog, lookup, preparation, sources
from dresnet_jax.errors import UserError
from dresnet_jax.training import experiment, loop, workdir
from tests.data import archives
from tests.data.archives import needs_tensorflow

CLASSES = ("cat", "dog", "gnu")


def prepare(directory, root="images"):
    preparation.prepare_folder(str(directory / "data"), str(directory / root))
    return str(directory / "data")


@needs_tensorflow
def test_one_directory_a_class_becomes_three_splits(tmp_path):
    images = archives.image_folder(tmp_path / "images", CLASSES, per_class=10)
    data_dir = prepare(tmp_path)
    dataset = lookup.named("folder", data_dir)
    assert dataset.class_names == CLASSES
    assert dataset.splits == {"train": 24, "validation": 3, "test": 3}
    found = {}
    for examples in sources.open_splits(dataset, data_dir).values():
        for data, label in examples.read(range(len(examples))):
            found[archives.decoded(data).tobytes()] = CLASSES[label]
    assert len(found) == 30
    for name, pixels in images.items():
        assert found[pixels.tobytes()] == name.split("/")[0]


@needs_tensorflow
@pytest.mark.parametrize(
    ("names", "splits", "official"),
    [
        (("train", "val"), (18, 2, 20), ("train", "train", "validation")),
        (("train", "test"), (18, 2, 20), ("train", "train", "test")),
        (("train", "validation", "test"), (20, 20, 20), catalog.SPLITS),
    ],
)
def test_splits_are_taken_where_there_are_some(tmp_path, names, splits, official):
    for name in names:
        archives.image_folder(tmp_path / "images" / name, CLASSES[:2], per_class=10)
    dataset = lookup.named("folder", prepare(tmp_path))
    assert dataset.splits == dict(zip(catalog.SPLITS, splits, strict=True))
    assert dataset.tfds_splits == dict(zip(catalog.SPLITS, official, strict=True))


@needs_tensorflow
def test_it_is_trained_on_by_its_config(tmp_path):
    archives.image_folder(tmp_path / "images", CLASSES, per_class=10)
    config = folder.get_config()
    config.data.data_dir = prepare(tmp_path)
    config.data.image_size = 32
    config.data.batch_size = 8
    config.data.rand_augment_layers = 2
    config.data.num_threads = 2
    config.model.width = 4
    config.model.blocks_per_stage = (1, 1, 1)
    config.train.num_steps = 4
    parts = experiment.build(config)
    assert parts.road.description.startswith("streaming, 2 threads: the images of")
    directory = epath.Path(tmp_path / "run")
    with workdir.claim(directory, config, overwrite=False):
        report = loop.run(parts, directory)
    assert np.isfinite(report["test_loss"])

    config.data.mode = "resident"
    with pytest.raises(UserError, match="the images of folder differ in size"):
        experiment.build(config)


@needs_tensorflow
def test_an_interrupted_preparation_leaves_nothing(tmp_path):
    archives.image_folder(tmp_path / "images", CLASSES)
    (tmp_path / "images" / "cat" / "0.jpeg").unlink()
    (tmp_path / "images" / "cat" / "0.jpeg").symlink_to("nowhere")
    with pytest.raises(Exception, match=r"No such file"):
        prepare(tmp_path)
    with pytest.raises(UserError, match="folder is not prepared"):
        lookup.named("folder", str(tmp_path / "data"))


@needs_tensorflow
def test_what_holds_no_classes_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="no directories of images, one for each class"):
        prepare(tmp_path)
    with pytest.raises(UserError, match="is not a directory"):
        prepare(tmp_path, root="nothing")
    for name in ("train", "val", "validation"):
        (tmp_path / "images" / name).mkdir()
    with pytest.raises(UserError, match="both val and validation"):
        prepare(tmp_path)
    with pytest.raises(UserError, match="needs --from_dir"):
        preparation.prepare_folder(str(tmp_path), None)


@needs_tensorflow
def test_another_folder_is_not_prepared_over_one(tmp_path):
    archives.image_folder(tmp_path / "images", CLASSES)
    prepare(tmp_path)
    with pytest.raises(UserError, match="exists: delete it, or give another"):
        prepare(tmp_path)


def test_a_folder_that_is_not_prepared_says_how_to(tmp_path):
    with pytest.raises(UserError, match="prepare --dataset=folder --from_dir="):
        lookup.named("folder", str(tmp_path))
