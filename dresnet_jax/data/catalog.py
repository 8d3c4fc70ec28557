"""The catalogue: what each dataset is, and nothing that does anything with it."""

import dataclasses
from pathlib import Path
from typing import Any

from dresnet_jax.data import tiny_imagenet_classes

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
      tfds_splits: where TensorFlow Datasets has it under the same name, the split of
        that each of `SPLITS` is taken from.
      fixed_size: whether all images are of `image_size`; others are brought to it.
      unused: examples between those for training and those after them.
      digest: of what is prepared, where that differs from person to person.
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
    fixed_size: bool = True
    unused: int = 0
    digest: str = ""

    @property
    def num_classes(self) -> int:
        """How many classes it has."""
        return len(self.class_names)

    @property
    def is_carved(self) -> bool:
        """Whether validation is taken from the official training split."""
        names = self.tfds_splits
        return not names or names["validation"] == names["train"]

    def tfds_range(self, name: str) -> tuple[str, int, int]:
        """Returns the records that one of `SPLITS` is: (official split, from, up to).

        Splits that are taken from one official split follow each other in it, in the
        order of `SPLITS`. TFDS fixes the order of the records, so no part ever changes.
        """
        official = self.tfds_splits[name]
        before = SPLITS[: SPLITS.index(name)]
        earlier = [n for n in before if self.tfds_splits[n] == official]
        start = sum(self.splits[n] for n in earlier)
        if "train" in earlier:
            start += self.unused
        return official, start, start + self.splits[name]


def _carved(
    train: int, validation: int, test: int, tfds_test: str = "test"
) -> dict[str, Any]:
    """The fields of TFDS data whose validation split is the end of its train split."""
    return {
        "splits": {"train": train, "validation": validation, "test": test},
        "tfds_splits": {"train": "train", "validation": "train", "test": tfds_test},
    }


# Of the training images of ImageNet, as published; not computed here by
# python -m dresnet_jax.prepare --dataset=imagenet2012 --statistics
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

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
    # Of all 60,000 training images, as published; not computed here by
    # python -m dresnet_jax.prepare --dataset=mnist --statistics
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
    # Of all 50,000 training images, as published; not computed here by
    # python -m dresnet_jax.prepare --dataset=cifar10 --statistics
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
    # Of all 50,000 training images, as published; not computed here by
    # python -m dresnet_jax.prepare --dataset=cifar100 --statistics
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
    # Of all 73,257 training images, as published; not computed here by
    # python -m dresnet_jax.prepare --dataset=svhn_cropped --statistics
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    citation=(
        "Netzer, Y. et al. (2011). Reading Digits in Natural Images with Unsupervised "
        "Feature Learning. NIPS Workshop on Deep Learning and Feature Learning."
    ),
    licence="For non-commercial use only.",
    source="1.5 GB, by TensorFlow Datasets: train, test and extra_32x32.mat.",
)

_TINY_IMAGENET = Dataset(
    name="tiny_imagenet",
    image_size=64,
    channels=3,
    class_names=tuple(tiny_imagenet_classes.NAMES.values()),
    **_carved(train=90_000, validation=10_000, test=10_000, tfds_test="validation"),
    # Of all 100,000 training images, as published; not computed here by
    # python -m dresnet_jax.prepare --dataset=tiny_imagenet --statistics
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
    citation=(
        "Le, Y. and Yang, X. (2015). Tiny ImageNet Visual Recognition Challenge. "
        "CS 231N, Stanford University."
    ),
    licence="For non-commercial research and education only, as ImageNet.",
    source="248 MB, tiny-imagenet-200.zip, from Stanford University.",
)

_IMAGENET2012 = Dataset(
    name="imagenet2012",
    image_size=224,
    channels=3,
    class_names=tuple(
        line.partition(" ")[2]
        for line in Path(__file__)
        .with_name("imagenet2012_classes.txt")
        .read_text()
        .splitlines()
    ),
    **_carved(train=1_271_167, validation=10_000, test=50_000, tfds_test="validation"),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    citation=(
        "Russakovsky, O. et al. (2015). ImageNet Large Scale Visual Recognition "
        "Challenge. International Journal of Computer Vision 115."
    ),
    licence="For non-commercial research and education only.",
    source="145 GB: register at https://image-net.org and download both archives.",
    fixed_size=False,
)

DATASETS = {
    dataset.name: dataset
    for dataset in (
        _DIGITS,
        _MNIST,
        _FASHION_MNIST,
        _CIFAR10,
        _CIFAR100,
        _SVHN_CROPPED,
        _TINY_IMAGENET,
        _IMAGENET2012,
    )
}
