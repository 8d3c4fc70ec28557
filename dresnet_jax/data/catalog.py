"""The catalogue: what each dataset is, and nothing that does anything with it."""

import dataclasses
from pathlib import Path
from typing import Any

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
        return len(self.class_names)

    @property
    def is_carved(self) -> bool:
        """Whether validation is taken from the official training split."""
        names = self.tfds_splits
        return not names or names["validation"] == names["train"]

    def tfds_range(self, name: str) -> tuple[str, int, int]:
        """Returns the records that one of `SPLITS` is: (official split, from, up to).

        Splits that are taken from one official split follow each other in it, in the
        order of `SPLITS`; without TFDS, all are. TFDS fixes the order of the records,
        so no part ever changes.
        """
        names = self.tfds_splits or dict.fromkeys(SPLITS, "train")
        official = names[name]
        before = SPLITS[: SPLITS.index(name)]
        earlier = [n for n in before if names[n] == official]
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


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FILE = Path(__file__).with_name("imagenet2012_classes.txt")
# WordNet's number of a class to its name, in the order of the labels.
_IMAGENET_CLASSES = dict(line.split(" ", 1) for line in _FILE.read_text().splitlines())
# 200 of them. The order of the labels is sorted, as image-folder readers have it, not
# as it is in the archive's wnids.txt.
TINY_IMAGENET_CLASSES = {
    number: _IMAGENET_CLASSES[number]
    for number in _words(
        """
        n01443537 n01629819 n01641577 n01644900 n01698640 n01742172 n01768244 n01770393
        n01774384 n01774750 n01784675 n01855672 n01882714 n01910747 n01917289 n01944390
        n01945685 n01950731 n01983481 n01984695 n02002724 n02056570 n02058221 n02074367
        n02085620 n02094433 n02099601 n02099712 n02106662 n02113799 n02123045 n02123394
        n02124075 n02125311 n02129165 n02132136 n02165456 n02190166 n02206856 n02226429
        n02231487 n02233338 n02236044 n02268443 n02279972 n02281406 n02321529 n02364673
        n02395406 n02403003 n02410509 n02415577 n02423022 n02437312 n02480495 n02481823
        n02486410 n02504458 n02509815 n02666196 n02669723 n02699494 n02730930 n02769748
        n02788148 n02791270 n02793495 n02795169 n02802426 n02808440 n02814533 n02814860
        n02815834 n02823428 n02837789 n02841315 n02843684 n02883205 n02892201 n02906734
        n02909870 n02917067 n02927161 n02948072 n02950826 n02963159 n02977058 n02988304
        n02999410 n03014705 n03026506 n03042490 n03085013 n03089624 n03100240 n03126707
        n03160309 n03179701 n03201208 n03250847 n03255030 n03355925 n03388043 n03393912
        n03400231 n03404251 n03424325 n03444034 n03447447 n03544143 n03584254 n03599486
        n03617480 n03637318 n03649909 n03662601 n03670208 n03706229 n03733131 n03763968
        n03770439 n03796401 n03804744 n03814639 n03837869 n03838899 n03854065 n03891332
        n03902125 n03930313 n03937543 n03970156 n03976657 n03977966 n03980874 n03983396
        n03992509 n04008634 n04023962 n04067472 n04070727 n04074963 n04099969 n04118538
        n04133789 n04146614 n04149813 n04179913 n04251144 n04254777 n04259630 n04265275
        n04275548 n04285008 n04311004 n04328186 n04356056 n04366367 n04371430 n04376876
        n04398044 n04399382 n04417672 n04456115 n04465501 n04486054 n04487081 n04501370
        n04507155 n04532106 n04532670 n04540053 n04560804 n04562935 n04596742 n04597913
        n06596364 n07579787 n07583066 n07614500 n07615774 n07695742 n07711569 n07715103
        n07720875 n07734744 n07747607 n07749582 n07753592 n07768694 n07871810 n07873807
        n07875152 n07920052 n09193705 n09246464 n09256479 n09332890 n09428293 n12267677
        """
    )
} | {"n03126707": "crane"}  # No other crane, as ImageNet has the bird, is a class.

# Means and deviations of digits and fashion_mnist are those that
# `python -m dresnet_jax.prepare --dataset=digits --statistics` prints; the others are
# as published, of all images of the official training split.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CIFAR: dict[str, Any] = {
    "image_size": 32,
    "channels": 3,
    **_carved(train=45_000, validation=5_000, test=10_000),
    "citation": (
        "Krizhevsky, A. (2009). Learning Multiple Layers of Features from Tiny "
        "Images. Technical report, University of Toronto."
    ),
    "licence": "None stated.",
}

_ALL = (
    Dataset(
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
        licence="CC BY 4.0",
        source="Ships inside scikit-learn, `sklearn.datasets.load_digits`.",
    ),
    Dataset(
        name="mnist",
        image_size=28,
        channels=1,
        class_names=tuple("0123456789"),
        **_carved(train=55_000, validation=5_000, test=10_000),
        mean=(0.1307,),
        std=(0.3081,),
        citation=(
            "LeCun, Y., Cortes, C. and Burges, C. (2010). MNIST handwritten digit "
            "database."
        ),
        licence="CC BY-SA 3.0",
        source="11 MB, by TensorFlow Datasets.",
    ),
    Dataset(
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
    ),
    Dataset(
        name="cifar10",
        class_names=_words(
            "airplane automobile bird cat deer dog frog horse ship truck"
        ),
        **_CIFAR,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        source="162 MB, by TensorFlow Datasets: cifar-10-binary.tar.gz.",
    ),
    Dataset(
        name="cifar100",
        class_names=_words(
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
            """
        ),
        **_CIFAR,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        source="161 MB, by TensorFlow Datasets: cifar-100-binary.tar.gz.",
    ),
    Dataset(
        name="svhn_cropped",
        image_size=32,
        channels=3,
        class_names=tuple("0123456789"),
        **_carved(train=68_257, validation=5_000, test=26_032),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        citation=(
            "Netzer, Y. et al. (2011). Reading Digits in Natural Images with "
            "Unsupervised Feature Learning. NIPS Workshop on Deep Learning and Feature "
            "Learning."
        ),
        licence="For non-commercial use only.",
        source="1.5 GB, by TensorFlow Datasets: train, test and extra_32x32.mat.",
    ),
    Dataset(
        name="tiny_imagenet",
        image_size=64,
        channels=3,
        class_names=tuple(TINY_IMAGENET_CLASSES.values()),
        **_carved(train=90_000, validation=10_000, test=10_000, tfds_test="validation"),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        citation=(
            "Le, Y. and Yang, X. (2015). Tiny ImageNet Visual Recognition Challenge. "
            "CS 231N, Stanford University."
        ),
        licence="For non-commercial research and education only, as ImageNet.",
        source="248 MB, tiny-imagenet-200.zip, from Stanford University.",
    ),
    Dataset(
        name="imagenet2012",
        image_size=224,
        channels=3,
        class_names=tuple(_IMAGENET_CLASSES.values()),
        **_carved(
            train=1_271_167, validation=10_000, test=50_000, tfds_test="validation"
        ),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        citation=(
            "Russakovsky, O. et al. (2015). ImageNet Large Scale Visual Recognition "
            "Challenge. International Journal of Computer Vision 115."
        ),
        licence="For non-commercial research and education only.",
        source="145 GB: register at https://image-net.org and download both archives.",
        fixed_size=False,
    ),
)

DATASETS = {dataset.name: dataset for dataset in _ALL}
