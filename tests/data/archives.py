"""Small archives in the official formats of the datasets, made for the tests."""

import dataclasses
import hashlib
import importlib.util
import io
import tarfile
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from dresnet_jax.data import catalog, sources, views
from dresnet_jax.data.catalog import TINY_IMAGENET_CLASSES as NAMES

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="requirements-prepare.txt is not installed",
)


def small(name, train, validation, test):
    """A dataset of the catalogue with this many examples."""
    splits = {"train": train, "validation": validation, "test": test}
    return dataclasses.replace(catalog.DATASETS[name], splits=splits)


def loaded(dataset, data_dir):
    """The arrays of every split."""
    view = views.View(dataset.image_size, dataset.channels, dataset.fixed_size)
    return {
        name: sources.load(examples, view.evaluate, skip_corrupt=False)
        for name, examples in sources.open_splits(dataset, data_dir).items()
    }


def register(monkeypatch, builder, directory):
    """Makes the archives in a directory the ones that a TFDS builder wants."""
    infos = {}
    for url, info in builder.url_infos.items():
        path = directory / url.rpartition("/")[2]
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        size = path.stat().st_size
        infos[url] = dataclasses.replace(info, checksum=checksum, size=size)
    monkeypatch.setattr(type(builder), "url_infos", infos)


def smooth_image(random, height, width, *, gray=False):
    """Smooth random noise: what photographs are to a JPEG coder."""
    coarse = random.randint(256, size=(5, 5) if gray else (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


# Paler than they could be, so that there is contrast to gain.
PHOTO, GREY = (
    smooth_image(np.random.RandomState(0), 300, 400, gray=gray).point(
        lambda x: 40 + x // 2
    )
    for gray in (False, True)
)


def textured_image(random, height, width, *, gray=False):
    """Noise with the spectrum of photographs, 1/f: as many bytes as theirs."""
    frequencies = np.hypot(
        np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    )
    frequencies[0, 0] = 1 / max(height, width)

    def noise(power):
        phases = np.exp(2j * np.pi * random.uniform(size=frequencies.shape))
        plane = np.fft.irfft2(phases / frequencies**power, (height, width))
        return plane / plane.std()

    light = noise(1.1)
    if not gray:
        light = np.stack([light + 0.4 * noise(1.4) for _ in range(3)], axis=-1)
    return Image.fromarray(np.clip(110 + 45 * light, 0, 255).astype(np.uint8))


def encoded(image, image_format="JPEG"):
    """The bytes of an image's file."""
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, quality=92)
    return buffer.getvalue()


def decoded(data):
    """The pixels of an image's file: [height, width, 3], uint8."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def cifar10(directory):
    """Writes cifar-10-binary.tar.gz.

    Returns:
      Its labels, [file, example], and images, [file, example, height, width, channels];
      the last of the six files is the test split.
    """
    random = np.random.RandomState(0)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    labels = random.randint(10, size=(6, 20)).astype(np.uint8)
    # [file, example, channel, row, column], as CIFAR stores them.
    images = random.randint(256, size=(6, 20, 3, 32, 32)).astype(np.uint8)
    files = {"batches.meta.txt": "\n".join(catalog.DATASETS["cifar10"].class_names)}
    files["batches.meta.txt"] = files["batches.meta.txt"].encode()
    for name, file_labels, file_images in zip(names, labels, images, strict=True):
        records = [file_labels[:, None], file_images.reshape(20, -1)]
        files[name] = np.concatenate(records, axis=1).tobytes()
    files = {f"cifar-10-batches-bin/{name}": data for name, data in files.items()}
    _tar(directory / "cifar-10-binary.tar.gz", files, "w:gz")
    return labels, images.transpose(0, 1, 3, 4, 2)


def svhn_cropped(directory):
    """Writes train, test and extra_32x32.mat of 20, 10 and 5 images.

    Returns:
      The labels and images of each file, [examples, height, width, channels].
    """
    random = np.random.RandomState(0)
    result = {}
    for name, examples in (("train", 20), ("test", 10), ("extra", 5)):
        labels = random.randint(10, size=examples).astype(np.uint8)
        images = random.randint(256, size=(examples, 32, 32, 3)).astype(np.uint8)
        # The example is the last axis there, and the digit 0 is the class 10.
        stored = {
            "X": images.transpose(1, 2, 3, 0),
            "y": np.where(labels == 0, 10, labels)[:, None],
        }
        scipy.io.savemat(directory / f"{name}_32x32.mat", stored)
        result[name] = labels, images
    return result


def tiny_imagenet_files(per_class=1):
    """The files in a small tiny-imagenet-200.zip; the first of each split is gray.

    Returns:
      The files' bytes by name. There are `per_class` training images and one validation
      image of each class.
    """
    random = np.random.RandomState(0)

    def jpeg(gray):
        return encoded(smooth_image(random, 64, 64, gray=gray))

    # In the archive the classes are in no order; labels are in that of the sorted ones.
    wnids = random.permutation(list(NAMES)).tolist()
    words = "".join(f"{wnid}\t{name}, and so on\n" for wnid, name in NAMES.items())
    files = {"wnids.txt": "\n".join(wnids).encode(), "words.txt": words.encode()}
    for wnid in wnids:
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"box\t0\t0\t63\t63\n"
        for index in range(per_class):
            name = f"train/{wnid}/images/{wnid}_{index}.JPEG"
            files[name] = jpeg(gray=wnid == wnids[0] and index == 0)
    annotations = [
        f"val_{index}.JPEG\t{wnid}\t0\t0\t63\t63\n"
        for index, wnid in enumerate(reversed(wnids))
    ]
    files["val/val_annotations.txt"] = "".join(annotations).encode()
    for index in range(len(wnids)):
        files[f"val/images/val_{index}.JPEG"] = jpeg(gray=index == 0)
    files["test/images/test_0.JPEG"] = jpeg(gray=False)
    return {f"tiny-imagenet-200/{name}": data for name, data in files.items()}


def tiny_imagenet(directory, files):
    """Writes tiny-imagenet-200.zip of `tiny_imagenet_files`; returns its path."""
    path = directory / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def imagenet2012(directory, wnids, per_class=2, validation=3, make_image=smooth_image):
    """Writes ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.

    Their images are of 300 to 500 pixels a side; the first of each split is gray.

    Args:
      directory: where they are written.
      wnids: the classes that are in the training archive.
      per_class: training images of each.
      validation: images in the validation archive, whose labels it does not hold.
      make_image: makes one, as `smooth_image` does.

    Returns:
      The bytes of the training images and of the validation images, by file name.
    """
    random = np.random.RandomState(0)

    def jpegs(names):
        return {
            name: encoded(
                make_image(random, *random.randint(300, 501, size=2), gray=index == 0)
            )
            for index, name in enumerate(names)
        }

    train = jpegs(f"{wnid}_{i}.JPEG" for wnid in wnids for i in range(per_class))
    held_out = jpegs(
        f"ILSVRC2012_val_{index:08}.JPEG" for index in range(1, validation + 1)
    )
    classes = {}
    for wnid in wnids:
        buffer = directory / f"{wnid}.tar"
        _tar(buffer, {name: train[name] for name in train if name.startswith(wnid)})
        classes[buffer.name] = buffer.read_bytes()
        buffer.unlink()
    _tar(directory / "ILSVRC2012_img_train.tar", classes)
    _tar(directory / "ILSVRC2012_img_val.tar", held_out)
    return train, held_out


def image_folder(directory, classes=("cat", "dog"), per_class=4, sides=(40, 80)):
    """Writes <class>/<image> files: every second one a PNG, the first one gray.

    Args:
      directory: where they are written.
      classes: names of the folders.
      per_class: images in each.
      sides: the smallest and the largest height and width, in pixels.

    Returns:
      The pixels, [height, width, 3] and uint8, by "<class>/<image>".
    """
    random = np.random.RandomState(0)
    images = {}
    for label in classes:
        (directory / label).mkdir(parents=True)
        for index in range(per_class):
            image_format = ("JPEG", "PNG")[index % 2]
            height, width = random.randint(sides[0], sides[1] + 1, size=2)
            image = smooth_image(random, height, width, gray=not images)
            name = f"{label}/{index}.{image_format.lower()}"
            (directory / name).write_bytes(encoded(image, image_format))
            images[name] = decoded((directory / name).read_bytes())
    return images
