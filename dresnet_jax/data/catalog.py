"""The catalogue: what each dataset is, and nothing that does anything with it."""

import dataclasses

import ml_collections

from dresnet_jax.errors import UserError, pick

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a dataset is.

    Attributes:
      name: in the catalogue.
      image_size: height and width in pixels.
      channels: of an image.
      class_names: one per label, in the order of the labels.
      splits: examples of each of `SPLITS`.
      mean: of the training images' pixels, scaled to [0, 1], per channel.
      std: the standard deviation of the same.
      citation: who made it.
      source: how it is got.
    """

    name: str
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    splits: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    citation: str
    source: str

    @property
    def num_classes(self) -> int:
        """How many classes it has."""
        return len(self.class_names)


def _synthetic(config: ml_collections.ConfigDict) -> Dataset:
    fields = ("image_size", "channels", "num_classes", "num_examples")
    for field in fields:
        value = getattr(config, field)
        if value is None or value < 1:
            raise UserError(f"data.{field} = {value} must be above 0 for synthetic.")
    held_out = max(1, config.num_examples // 4)
    return Dataset(
        name="synthetic",
        image_size=config.image_size,
        channels=config.channels,
        class_names=tuple(str(label) for label in range(config.num_classes)),
        splits={
            "train": config.num_examples,
            "validation": held_out,
            "test": held_out,
        },
        mean=(0.5,) * config.channels,
        std=(0.25,) * config.channels,
        citation="None: a smooth random pattern per class, under noise.",
        source="Made on the spot by `sources.py`, the same for every seed.",
    )


def _digits(config: ml_collections.ConfigDict) -> Dataset:
    for field in ("image_size", "channels", "num_classes", "num_examples"):
        if getattr(config, field) is not None:
            raise UserError(
                f"data.{field} = {getattr(config, field)} cannot be set for digits, "
                "which is what it is; synthetic has any shape."
            )
    return DIGITS


DIGITS = Dataset(
    name="digits",
    image_size=8,
    channels=1,
    class_names=tuple("0123456789"),
    splits={"train": 1257, "validation": 180, "test": 360},
    mean=(0.3057,),
    std=(0.3755,),
    citation=(
        "Alpaydin, E. and Kaynak, C. (1998). Optical Recognition of Handwritten "
        "Digits. UCI Machine Learning Repository, doi:10.24432/C50P49."
    ),
    source="Ships inside scikit-learn, `sklearn.datasets.load_digits`.",
)

DATASETS = {"digits": _digits, "synthetic": _synthetic}


def lookup(config: ml_collections.ConfigDict) -> Dataset:
    """The dataset that `config.data` names.

    Raises:
      UserError: the name is unknown, or a field does not fit the dataset.
    """
    return pick("dataset", config.dataset, DATASETS)(config)
