"""Datasets that TensorFlow Datasets prepared: found, compared with the catalogue.

Nothing here needs TensorFlow.
"""

import functools
from typing import Any

from absl import logging
from etils import epath

from dresnet_jax.data import lookup
from dresnet_jax.data.catalog import SPLITS, Dataset
from dresnet_jax.data.records import Example, Records
from dresnet_jax.errors import UserError


def find(name: str, data_dir: str) -> tuple[Any, bool]:
    """Returns the TensorFlow Datasets builder of a dataset, and whether it is prepared.

    The builder is for array_record files; reading with it needs no TensorFlow.
    """
    # Imported here, since it takes half a second and few datasets need it.
    import tensorflow_datasets as tfds

    from dresnet_jax.data import tiny_imagenet  # noqa: F401  It registers itself.

    directory = epath.Path(data_dir).expanduser()
    verbosity = logging.get_verbosity()
    # TFDS warns where nothing is prepared; `require` makes an error of it.
    logging.set_verbosity(logging.ERROR)
    try:
        builder = tfds.builder(
            name, data_dir=directory, file_format=tfds.core.FileFormat.ARRAY_RECORD
        )
        return builder, builder.is_prepared()
    finally:
        logging.set_verbosity(verbosity)


def require(dataset: Dataset, data_dir: str) -> Any:
    """Returns the TFDS builder of a prepared dataset; None for one that has none.

    Raises:
      UserError: it is not prepared there, another version is, or what is prepared is
        not what the catalogue says.
    """
    if not dataset.tfds_splits or lookup.is_folder(dataset, data_dir):
        return None
    builder, is_prepared = find(dataset.name, data_dir)
    if not is_prepared:
        here = builder.data_path.parent
        others = [path.name for path in here.iterdir()] if here.exists() else []
        raise UserError(
            f"{dataset.name} {builder.version} is not prepared in {data_dir}"
            + (f", which holds {', '.join(sorted(others))}" if others else "")
            + f": run python -m dresnet_jax.prepare --dataset={dataset.name} "
            f"--data_dir={data_dir}"
        )
    _check_content(dataset, builder.info, str(builder.data_path))
    return builder


def open_splits(builder: Any) -> dict[str, Records]:
    """Opens what is prepared, by the names of its own splits."""
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    parse = functools.partial(_parse, builder.info.features, decoders)
    remedy = f"Delete {builder.data_path} and prepare {builder.name} again."
    return {
        name: Records(tuple(split.file_instructions), parse, remedy)
        for name, split in builder.info.splits.items()
    }


def _parse(features: Any, decoders: Any, record: bytes) -> tuple[str, Example]:
    result = features.deserialize_example_np(record, decoders=decoders)
    return "", Example(result["image"], int(result["label"]))


def _check_content(dataset: Dataset, info: Any, path: str) -> None:
    """Compares what is prepared with what the model is built for."""
    classes = info.features["label"].num_classes
    if classes != dataset.num_classes:
        raise UserError(
            f"{path} has {classes} classes; the model is built for "
            f"{dataset.num_classes}."
        )
    shape = (dataset.image_size, dataset.image_size, dataset.channels)
    if dataset.fixed_size and info.features["image"].shape != shape:
        raise UserError(
            f"{path} has images of shape {info.features['image'].shape}; the model is "
            f"built for {shape}."
        )
    for name in SPLITS:
        official, _, stop = dataset.tfds_range(name)
        result = info.splits[official].num_examples
        if result < stop:
            raise UserError(
                f"{path} has {result} {official} examples; {name} asks for them up to "
                f"the {stop}th."
            )
