"""From a config, or a name, to the dataset that it means."""

import dataclasses
import hashlib
import json
import math
from typing import Any

import ml_collections
from etils import epath

from dresnet_jax.data import catalog, folder_records
from dresnet_jax.data.catalog import Dataset
from dresnet_jax.errors import UserError, pick


def from_config(config: ml_collections.ConfigDict) -> Dataset:
    """Returns the dataset that `config.data` names, with the splits that it asks for.

    Raises:
      UserError: the name is unknown, or a field does not fit the dataset.
    """
    if config.dataset == "synthetic":
        dataset = _synthetic(config)
    else:
        names = dict.fromkeys([*catalog.DATASETS, "folder", "synthetic"])
        pick("dataset", config.dataset, names)
        dataset = _resized(config, named(config.dataset, config.data_dir))
    dataset = _normalised(config, dataset)
    dataset = _with_validation(dataset, config.validation_examples)
    return _with_training(dataset, config.train_examples)


def named(name: str, data_dir: str) -> Dataset:
    """Returns a dataset of `catalog.DATASETS`, or the `folder` in a data directory.

    Raises:
      UserError: no folder is prepared there.
    """
    return _folder(data_dir) if name == "folder" else catalog.DATASETS[name]


_SHAPE_FIELDS = ("image_size", "channels", "num_classes", "num_examples")


def _resized(config: ml_collections.ConfigDict, dataset: Dataset) -> Dataset:
    """The dataset, its images brought to the size asked for where they differ."""
    free = () if dataset.fixed_size else ("image_size",)
    for field in _SHAPE_FIELDS:
        if config[field] is not None and field not in free:
            raise UserError(
                f"data.{field} = {config[field]} cannot be set for {dataset.name}, "
                "which is what it is; synthetic has any shape."
            )
    if dataset.fixed_size or config.image_size is None:
        return dataset
    if config.image_size < 1:
        raise UserError(f"data.image_size = {config.image_size} must be above 0.")
    return dataclasses.replace(dataset, image_size=config.image_size)


def folder_path(data_dir: str) -> epath.Path:
    """Returns the directory of a data directory's `folder`."""
    return epath.Path(data_dir).expanduser() / "folder" / "2.0.0"


def is_folder(dataset: Dataset, data_dir: str) -> bool:
    """Checks whether a dataset is a `folder` that this version prepared."""
    about = folder_path(data_dir) / folder_records.ABOUT
    return dataset.name == "folder" and about.exists()


def earlier_folder_path(data_dir: str) -> epath.Path:
    """Returns the directory of a `folder` that earlier versions prepared."""
    return folder_path(data_dir).with_name("1.0.0")


def require_folder(dataset: Dataset, data_dir: str) -> None:
    """Checks that a `folder` is what is prepared in a directory.

    Raises:
      UserError: nothing is, or other images.
    """
    there = _folder(data_dir)
    if dataset.digest and there.digest != dataset.digest:
        raise UserError(
            f"data.data_dir = {data_dir} holds another folder than this run was "
            f"trained on, of the classes {', '.join(there.class_names[:5])}"
            + (" and more" if there.num_classes > 5 else "")
            + ": prepare that one again, or say where it is now."
        )


def _folder(data_dir: str) -> Dataset:
    earlier = earlier_folder_path(data_dir)
    if about := folder_records.about(folder_path(data_dir)):
        class_names, official = about["class_names"], about["splits"]
        digest = about["digest"]
    elif (earlier / "dataset_info.json").exists():
        # Imported here, since it takes half a second.
        import tensorflow_datasets as tfds

        info = tfds.builder_from_directory(earlier).info
        class_names = info.features["label"].names
        official = {name: split.num_examples for name, split in info.splits.items()}
        # Of the classes and counts: more is not known without reading it all.
        text = json.dumps([class_names, official])
        digest = hashlib.sha256(text.encode()).hexdigest()
    else:
        raise UserError(
            f"folder is not prepared in {data_dir}: run python -m dresnet_jax.prepare "
            f"--dataset=folder --from_dir=<directory of class/image files> "
            f"--data_dir={data_dir}"
        )
    return Dataset(
        name="folder",
        image_size=224,
        channels=3,
        class_names=tuple(class_names),
        **_folder_splits(official),
        mean=catalog.IMAGENET_MEAN,
        std=catalog.IMAGENET_STD,
        citation="None: your own images.",
        licence="Theirs.",
        source="Prepared from a directory of class/image files.",
        fixed_size=False,
        digest=digest,
    )


def _folder_splits(official: dict[str, int]) -> dict[str, Any]:
    """The fields of a folder, whose missing splits are tenths of its training images.

    Where there is validation and no test, validation is the test, as on ImageNet.
    """
    tenth = max(1, official["train"] // 10)
    test = next(name for name in ("test", "validation", "train") if name in official)
    has_both = {"validation", "test"} <= official.keys()
    validation = "validation" if has_both else "train"
    names = {"train": "train", "validation": validation, "test": test}
    splits = {
        name: tenth if names[name] == "train" else official[names[name]]
        for name in ("validation", "test")
    }
    taken = sum(splits[name] for name in splits if names[name] == "train")
    if taken >= official["train"]:
        raise UserError(
            f"folder has {official['train']} training images, and {taken} are held out "
            "of them for validation and test: it needs more."
        )
    return {
        "splits": {"train": official["train"] - taken, **splits},
        "tfds_splits": names,
    }


def _normalised(config: ml_collections.ConfigDict, dataset: Dataset) -> Dataset:
    """The dataset with the mean and deviation that are asked for."""
    result: dict[str, Any] = {}
    for field, least in (("mean", -math.inf), ("std", 0)):
        values = config[field]
        if values is None:
            continue
        numbers = all(type(x) in (int, float) and math.isfinite(x) for x in values)
        if len(values) != dataset.channels or not numbers or min(values) <= least:
            raise UserError(
                f"data.{field} = {tuple(values)} must be {dataset.channels} numbers"
                + (" above 0." if field == "std" else ".")
            )
        result[field] = tuple(map(float, values))
    return dataclasses.replace(dataset, **result)


def _with_validation(dataset: Dataset, asked: int | None) -> Dataset:
    """The dataset with this many validation examples; as it is for None."""
    if asked is None:
        return dataset
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    available = train + validation - 1 if dataset.is_carved else validation
    if not 1 <= asked <= available:
        raise UserError(
            f"data.validation_examples = {asked} must be between 1 and the "
            f"{available} that {dataset.name} has."
        )
    splits = dataset.splits | {"validation": asked}
    if dataset.is_carved:
        splits["train"] = train + validation - asked
    return dataclasses.replace(dataset, splits=splits)


def _with_training(dataset: Dataset, asked: int | None) -> Dataset:
    """The dataset with this many training examples; as it is for None."""
    if asked is None:
        return dataset
    available = dataset.splits["train"]
    if dataset.name == "synthetic":
        raise UserError(
            f"data.train_examples = {asked}: synthetic has data.num_examples instead."
        )
    if not 1 <= asked <= available:
        raise UserError(
            f"data.train_examples = {asked} must be between 1 and the {available} that "
            f"{dataset.name} has besides those for validation."
        )
    splits = dataset.splits | {"train": asked}
    return dataclasses.replace(dataset, splits=splits, unused=available - asked)


def _synthetic(config: ml_collections.ConfigDict) -> Dataset:
    for field in _SHAPE_FIELDS:
        if config[field] is None or config[field] < 1:
            raise UserError(
                f"data.{field} = {config[field]} must be above 0 for synthetic."
            )
    held_out = max(1, config.num_examples // 4)
    return Dataset(
        name="synthetic",
        image_size=config.image_size,
        channels=config.channels,
        class_names=tuple(str(label) for label in range(config.num_classes)),
        splits=dict.fromkeys(catalog.SPLITS, held_out) | {"train": config.num_examples},
        mean=(0.5,) * config.channels,
        std=(0.25,) * config.channels,
        citation="None: a random pattern of patches per class, under noise.",
        licence="None needed.",
        source="Made on the spot by `sources.py`, the same for every seed.",
    )
