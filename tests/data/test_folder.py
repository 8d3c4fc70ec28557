"""Your own images become the dataset that they expect, and are trained on."""

import json
import os
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

from configs import folder
from dresnet_jax.data import catalog, image_folder, lookup, preparation, sources
from dresnet_jax.errors import UserError
from dresnet_jax.training import experiment, loop, workdir
from tests.conftest import run_command
from tests.data import archives
from tests.data.archives import needs_tensorflow

CLASSES = ("cat", "dog", "gnu")


def prepare(directory, root="images", *, skip_corrupt=False):
    preparation.prepare_folder(
        str(directory / "data"), str(directory / root), skip_corrupt=skip_corrupt
    )
    return str(directory / "data")


def found_in(root):
    """The files of the training split by class, and what is left out."""
    result = image_folder.find(root)
    of_class = {name: [] for name in result.class_names}
    for path, label in sorted(result.files["train"]):
        of_class[result.class_names[label]].append(path)
    return of_class, +result.left_out


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (9, 8, 7)).save(path)


@pytest.fixture
def root(tmp_path):
    """Two classes of two images."""
    archives.image_folder(tmp_path / "images", CLASSES[:2], per_class=2)
    return tmp_path / "images"


def test_one_directory_a_class_becomes_three_splits(tmp_path):
    images = archives.image_folder(tmp_path / "images", CLASSES, per_class=10)
    data_dir = prepare(tmp_path)
    dataset = lookup.named("folder", data_dir)
    assert dataset.class_names == CLASSES
    assert dataset.splits == {"train": 24, "validation": 3, "test": 3}
    result = {}
    for examples in sources.open_splits(dataset, data_dir).values():
        for i, (data, label) in enumerate(examples.read(range(len(examples)))):
            result[archives.decoded(data).tobytes()] = CLASSES[label]
            assert examples.where(i).startswith(f"{CLASSES[label]}/")
    assert len(result) == 30
    for name, pixels in images.items():
        assert result[pixels.tobytes()] == name.split("/")[0]


@pytest.mark.parametrize(
    ("names", "splits", "official"),
    [
        (("train", "val"), (18, 2, 20), ("train", "train", "validation")),
        (("Train", "TEST"), (18, 2, 20), ("train", "train", "test")),
        (("train", "valid", "test"), (20, 20, 20), catalog.SPLITS),
    ],
)
def test_splits_are_taken_where_there_are_some(tmp_path, names, splits, official):
    for name in names:
        archives.image_folder(tmp_path / "images" / name, CLASSES[:2], per_class=10)
    (tmp_path / "images" / "read me.txt").write_text("")
    dataset = lookup.named("folder", prepare(tmp_path))
    assert dataset.splits == dict(zip(catalog.SPLITS, splits, strict=True))
    assert dataset.tfds_splits == dict(zip(catalog.SPLITS, official, strict=True))


def test_files_of_operating_systems_are_left_out(root):
    for name in (".ipynb_checkpoints", "__MACOSX"):
        picture(root / name / "x.png")
        picture(root / "cat" / name / "x.png")
    picture(root / "cat" / "._0.png")
    (root / "cat" / "Thumbs.db").write_text("")
    picture(root / "alone.png")
    of_class, left_out = found_in(root)
    assert {name: len(paths) for name, paths in of_class.items()} == {
        "cat": 2,
        "dog": 2,
    }
    assert left_out == {
        "hidden or system directories": 4,
        "hidden or system files": 1,
        "files that end in '.db'": 1,
        "files in no class": 1,
    }


def test_images_lie_at_any_depth_and_end_in_what_predict_reads(root):
    for name in ("a/b/c.WEBP", "a/d.bmp", "e.TIF"):
        picture(root / "cat" / name)
    of_class, left_out = found_in(root)
    assert {"cat/a/b/c.WEBP", "cat/a/d.bmp", "cat/e.TIF"} <= set(of_class["cat"])
    assert len(of_class["cat"]) == 5
    assert not left_out


def test_links_are_followed_once_and_never_out_of_the_folder(root, tmp_path):
    picture(tmp_path / "elsewhere" / "x.png")
    picture(root / ".store" / "y.png")
    (root / "cat" / "out").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "loop").symlink_to(root)
    (root / "cat" / "again.png").symlink_to("0.jpeg")
    (root / "cat" / "new.png").symlink_to(root / ".store" / "y.png")
    (root / "cat" / "broken.png").symlink_to("nowhere")
    os.mkfifo(root / "cat" / "pipe.png")
    of_class, left_out = found_in(root)
    assert of_class == {
        "cat": ["cat/0.jpeg", "cat/1.png", "cat/new.png"],
        "dog": ["dog/0.jpeg", "dog/1.png"],
    }
    assert left_out["links out of the directory"] == 1
    assert left_out["links to what was found without them"] >= 1
    assert left_out["broken links, pipes or devices"] == 2


def test_a_class_that_is_a_link_out_of_the_folder_is_refused(root, tmp_path):
    picture(tmp_path / "elsewhere" / "x.png")
    (root / "eel").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"eel holds no training image.*1 links out of"):
        image_folder.find(root)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/a/0.png", "train/b/0.png", "val/a/0.png"], "val has no directory 'b'"),
        (["train/a/0.png", "train/b/0.png", "val/c/0.png"], "has no directory"),
        (["train/a/0.png", "train/b/notes.txt"], "train/b holds no training image"),
        (["train/a/0.png", "train/b/0.png", "extra/a/0.png"], "has also 'extra'"),
        (["val/a/0.png", "val/b/0.png"], "has the splits 'val' and has no train"),
        (["a/0.png", "b\x1b[31m/0.png"], r"'b\\x1b\[31m' cannot be a class"),
        (["a/0.png"], "holds no directories of images, one for each class: 1 found"),
        (["Train/a/0.png", "train/a/0.png"], "has both Train and train"),
        (["train/a/0.png", "val/a/0.png", "VALID/a/0.png"], "both VALID and val"),
    ],
)
def test_what_is_no_dataset_is_refused(tmp_path, paths, message):
    for path in paths:
        full = tmp_path / "images" / path
        full.parent.mkdir(parents=True, exist_ok=True)
        picture(full) if full.suffix == ".png" else full.write_text("")
    with pytest.raises(UserError, match=message):
        prepare(tmp_path)
    assert not (tmp_path / "data").exists()


def test_too_few_images_to_hold_some_out_are_refused(tmp_path):
    for name in "ab":
        picture(tmp_path / "images" / name / "0.png")
    with pytest.raises(UserError, match="2 training images, and 2 are held out"):
        lookup.named("folder", prepare(tmp_path))


def test_an_image_that_cannot_be_read_is_named_or_left_out(root, tmp_path):
    whole = (root / "dog" / "0.jpeg").read_bytes()
    (root / "dog" / "0.jpeg").write_bytes(whole[:300])
    (root / "dog" / "2.png").write_bytes(b"")
    arguments = ("--dataset=folder", f"--from_dir={root}")
    place = f"--data_dir={tmp_path / 'data'}"
    code, output, errors = run_command("prepare", *arguments, place)
    assert code == 1
    assert errors.count("\n") == 1
    assert "dog/" in errors
    assert not list((tmp_path / "data").rglob("*.array_record"))
    code, output, errors = run_command("prepare", *arguments, place, "--skip_corrupt")
    assert code == 0, errors
    assert "train: 3 images: cat 2, dog 1\n" in output
    assert "left out: 2 images that cannot be read\n" in output


@pytest.mark.usefixtures("root")
def test_a_record_is_named_by_its_file(tmp_path):
    data_dir = prepare(tmp_path)
    dataset = lookup.named("folder", data_dir)
    train = sources.open_splits(dataset, data_dir)["train"]

    def broken(_):
        raise OSError("no good")

    with pytest.raises(sources.CorruptRecordError, match=r"^(cat|dog)/\d.\w+: no good"):
        sources.pixels(train, 1, train.read([1])[0], broken, skip_corrupt=False)


def test_names_of_any_bytes_are_taken(root, tmp_path):
    name = os.fsencode(root / "cat") + b"/\xff\x1b.jpeg"
    shutil.copy(os.fsencode(root / "cat" / "0.jpeg"), name)
    data_dir = prepare(tmp_path)
    dataset = lookup.named("folder", data_dir)
    splits = sources.open_splits(dataset, data_dir).values()
    names = [x.where(i) for x in splits for i in range(len(x))]
    assert r"cat/\xff\x1b.jpeg" in names


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    "fields",
    [
        {"splits": 3},
        {"splits": {"train": "many"}},
        {"splits": {}},
        {"class_names": [1, 2]},
        {"digest": None},
    ],
    ids=str,
)
def test_a_note_of_other_types_is_one_clear_line(tmp_path, fields):
    data_dir = prepare(tmp_path)
    path = lookup.folder_path(data_dir) / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError, match=rf"damaged: its {next(iter(fields))} is "):
        lookup.named("folder", data_dir)


@pytest.mark.usefixtures("root")
def test_records_without_their_note_are_one_clear_line(tmp_path):
    data_dir = prepare(tmp_path)
    dataset = lookup.named("folder", data_dir)
    (lookup.folder_path(data_dir) / "dataset.json").unlink()
    with pytest.raises(UserError, match="folder is not prepared in"):
        sources.open_splits(dataset, data_dir)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("file", ["train.array_record", "dataset.json"])
def test_damage_is_one_clear_line(tmp_path, file):
    data_dir = prepare(tmp_path)
    dataset = lookup.named("folder", data_dir)
    path = lookup.folder_path(data_dir) / file
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"is (truncated|damaged).*repare"):
        sources.open_splits(dataset, data_dir)


def tiny(data_dir):
    config = folder.get_config()
    config.data.data_dir = data_dir
    config.data.image_size = 32
    config.data.batch_size = 8
    config.data.rand_augment_layers = 2
    config.data.num_threads = 2
    config.model.width = 4
    config.model.blocks_per_stage = (1, 1, 1)
    config.train.num_steps = 4
    return config


def test_a_run_keeps_what_it_was_trained_on(tmp_path):
    """Whatever is prepared in its data directory afterwards."""
    archives.image_folder(tmp_path / "images", CLASSES, per_class=10)
    config = tiny(prepare(tmp_path))
    exp = experiment.build(config)
    assert exp.inputs.description.startswith("streaming, 2 threads: the images of")
    directory = epath.Path(tmp_path / "run")
    with workdir.claim(directory, config, overwrite=False):
        report = loop.run(exp, directory)
    assert np.isfinite(report["test_loss"])
    run, image = f"--workdir={directory}", tmp_path / "images" / "cat" / "0.jpeg"

    # The next project, of as many classes and images.
    shutil.rmtree(lookup.folder_path(config.data.data_dir))
    (tmp_path / "images" / "cat").rename(tmp_path / "images" / "ant")
    prepare(tmp_path)
    image = tmp_path / "images" / "ant" / "0.jpeg"
    code, output, errors = run_command("predict", run, "--top=3", str(image))
    assert code == 0, errors
    assert "cat" in output
    assert ": ant" not in output
    code, _, errors = run_command("evaluate", run)
    assert (code, errors.count("\n")) == (2, 1)
    assert "holds another folder than this run was trained on" in errors
    with (
        pytest.raises(UserError, match="run on another folder: class_names, digest d"),
        workdir.claim(directory, config, overwrite=False),
    ):
        pass

    # What it was trained on is elsewhere now.
    (tmp_path / "images" / "ant").rename(tmp_path / "images" / "cat")
    elsewhere = tmp_path / "elsewhere"
    place = (str(elsewhere), str(tmp_path / "images"))
    preparation.prepare_folder(*place, skip_corrupt=False)
    code, output, errors = run_command("evaluate", run, f"--data_dir={elsewhere}")
    assert code == 0, errors
    config.data.data_dir = str(elsewhere)
    with workdir.claim(directory, config, overwrite=False):
        assert loop.run(experiment.build(config), directory) == report

    shutil.rmtree(elsewhere)
    assert run_command("predict", run, "--top=3", str(image.parent.parent))[0] == 0
    config.data.mode = "resident"
    with pytest.raises(UserError, match="folder is not prepared"):
        experiment.build(config)


def test_what_a_run_notes_of_its_data_may_be_damaged(tmp_path):
    directory = epath.Path(tmp_path / "run")
    assert workdir.read_dataset(directory) is None
    directory.mkdir()
    for text in ("{", "[]", '{"name": "folder"}', '{"class_names": 3}'):
        (directory / "dataset.json").write_text(text)
        with pytest.raises(UserError, match=r"dataset.json is damaged: "):
            workdir.read_dataset(directory)


def test_images_that_differ_in_size_are_not_resident(tmp_path):
    archives.image_folder(tmp_path / "images", CLASSES, per_class=10)
    config = tiny(prepare(tmp_path))
    config.data.mode = "resident"
    with pytest.raises(UserError, match="the images of folder differ in size"):
        experiment.build(config)


@pytest.mark.usefixtures("root")
def test_another_folder_is_not_prepared_over_one(tmp_path):
    prepare(tmp_path)
    with pytest.raises(UserError, match=r"exists: choose another --data_dir"):
        prepare(tmp_path)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        prepare(tmp_path, root="nothing")
    with pytest.raises(UserError, match="needs --from_dir"):
        preparation.prepare_folder(str(tmp_path), None, skip_corrupt=False)
    with pytest.raises(UserError, match="prepare a folder in a local directory"):
        preparation.prepare_folder("gs://b", str(tmp_path), skip_corrupt=False)
    with pytest.raises(UserError, match="prepare --dataset=folder --from_dir="):
        lookup.named("folder", str(tmp_path))


@needs_tensorflow
def test_what_an_earlier_version_prepared_is_still_read(tmp_path):
    import tensorflow_datasets as tfds

    archives.image_folder(tmp_path / "images" / "train", CLASSES, per_class=10)
    images = tfds.ImageFolder(str(tmp_path / "images"))
    data_dir = str(tmp_path / "data")
    skip = {"image": tfds.decode.SkipDecoding()}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="folder",
        version="1.0.0",
        features=images.info.features,
        split_datasets={"train": images.as_dataset(split="train", decoders=skip)},
        data_dir=data_dir,
        file_format="array_record",
    )
    dataset = lookup.named("folder", data_dir)
    assert (dataset.class_names, dataset.splits["train"]) == (CLASSES, 24)
    (example,) = sources.open_splits(dataset, data_dir)["test"].read([2])
    assert archives.decoded(example.image).ndim == 3
    with pytest.raises(UserError, match="exists: choose another"):
        prepare(tmp_path)
