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
      licence: under which it is given.
      source: how it is got.
      tfds_splits: where TensorFlow Datasets has it under the same name, the part of
        that each of `SPLITS` is; validation is carved from the end of the training
        records, whose order TFDS fixes.
    """

    name: str
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    splits: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    citation: str
    licence: str
    source: str
    tfds_splits: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """How many classes it has."""
        return len(self.class_names)


def lookup(config: ml_collections.ConfigDict) -> Dataset:
    """The dataset that `config.data` names.

    Raises:
      UserError: the name is unknown, or a field does not fit the dataset.
    """
    if config.dataset == "synthetic":
        return _synthetic(config)
    pick("dataset", config.dataset, dict.fromkeys([*DATASETS, "synthetic"]))
    return _as_it_is(config, DATASETS[config.dataset])


_SHAPE_FIELDS = ("image_size", "channels", "num_classes", "num_examples")


def _as_it_is(config: ml_collections.ConfigDict, dataset: Dataset) -> Dataset:
    for field in _SHAPE_FIELDS:
        if config[field] is not None:
            raise UserError(
                f"data.{field} = {config[field]} cannot be set for {dataset.name}, "
                "which is what it is; synthetic has any shape."
            )
    return dataset


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
        splits={
            "train": config.num_examples,
            "validation": held_out,
            "test": held_out,
        },
        mean=(0.5,) * config.channels,
        std=(0.25,) * config.channels,
        citation="None: a random pattern of patches per class, under noise.",
        licence="None needed.",
        source="Made on the spot by `sources.py`, the same for every seed.",
    )


def _carved(train: int, validation: int, test: int) -> dict[str, dict]:
    """The fields of TFDS data whose validation split is the end of its train split."""
    return {
        "splits": {"train": train, "validation": validation, "test": test},
        "tfds_splits": {
            "train": f"train[:{train}]",
            "validation": f"train[{train}:]",
            "test": "test",
        },
    }


_DIGITS = Dataset(
    name="digits",
    image_size=8,
    channels=1,
    class_names=tuple("0123456789"),
    splits={"train": 1257, "validation": 180, "test": 360},
    # python -m dresnet_jax.prepare --dataset=digits --statistics
    mean=(0.3057,),
    std=(0.3755,),
    citation=(
        "Alpaydin, E. and Kaynak, C. (1998). Optical Recognition of Handwritten "
        "Digits. UCI Machine Learning Repository, doi:10.24432/C50P49."
    ),
    licence="CC BY 4.0",
    source="Ships inside scikit-learn, `sklearn.datasets.load_digits`.",
)

_FASHION_MNIST = Dataset(
    name="fashion_mnist",
    image_size=28,
    channels=1,
    class_names=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    **_carved(train=55_000, validation=5_000, test=10_000),
    # python -m dresnet_jax.prepare --dataset=fashion_mnist --statistics
    mean=(0.2862,),
    std=(0.3530,),
    citation=(
        "Xiao, H., Rasul, K. and Vollgraf, R. (2017). Fashion-MNIST: a Novel Image "
        "Dataset for Benchmarking Machine Learning Algorithms. arXiv:1708.07747."
    ),
    licence="MIT",
    source=(
        "31 MB, by TensorFlow Datasets; the archives are also in Debian's package "
        "dataset-fashion-mnist, under /usr/share/datasets/fashion-mnist."
    ),
)

_MNIST = Dataset(
    name="mnist",
    image_size=28,
    channels=1,
    class_names=tuple("0123456789"),
    **_carved(train=55_000, validation=5_000, test=10_000),
    # Of all 60,000 training images, as published.
    mean=(0.1307,),
    std=(0.3081,),
    citation=(
        "LeCun, Y., Cortes, C. and Burges, C. (2010). MNIST handwritten digit database."
    ),
    licence="CC BY-SA 3.0",
    source="11 MB, by TensorFlow Datasets.",
)

_CIFAR = (
    "Krizhevsky, A. (2009). Learning Multiple Layers of Features from Tiny Images. "
    "Technical report, University of Toronto."
)

_CIFAR10 = Dataset(
    name="cifar10",
    image_size=32,
    channels=3,
    class_names=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    **_carved(train=45_000, validation=5_000, test=10_000),
    # Of all 50,000 training images, as published.
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    citation=_CIFAR,
    licence="None stated.",
    source="162 MB, by TensorFlow Datasets: cifar-10-binary.tar.gz.",
)

_CIFAR100 = Dataset(
    name="cifar100",
    image_size=32,
    channels=3,
    class_names=tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
        bowl boy bridge bus butterfly camel can castle caterpillar cattle
        chair chimpanzee clock cloud cockroach couch crab crocodile cup
        dinosaur dolphin elephant flatfish forest fox girl hamster house
        kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
        maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
        otter palm_tree pear pickup_truck pine_tree plain plate poppy
        porcupine possum rabbit raccoon ray road rocket rose sea seal shark
        shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
        sweet_pepper table tank telephone television tiger tractor train trout
        tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()  # noqa: SIM905
    ),
    **_carved(train=45_000, validation=5_000, test=10_000),
    # Of all 50,000 training images, as published.
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    citation=_CIFAR,
    licence="None stated.",
    source="161 MB, by TensorFlow Datasets: cifar-100-binary.tar.gz.",
)

_SVHN_CROPPED = Dataset(
    name="svhn_cropped",
    image_size=32,
    channels=3,
    class_names=tuple("0123456789"),
    **_carved(train=68_257, validation=5_000, test=26_032),
    # Of all 73,257 training images, as published.
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    citation=(
        "Netzer, Y. et al. (2011). Reading Digits in Natural Images with Unsupervised "
        "Feature Learning. NIPS Workshop on Deep Learning and Feature Learning."
    ),
    licence="For non-commercial use only.",
    source="1.5 GB, by TensorFlow Datasets: train, test and extra_32x32.mat.",
)

DATASETS = {
    dataset.name: dataset
    for dataset in (_DIGITS, _MNIST, _FASHION_MNIST, _CIFAR10, _CIFAR100, _SVHN_CROPPED)
}
