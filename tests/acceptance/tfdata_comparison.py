"""Compares streaming with tf.data on ImageNet's format: images per second and core.

    python -m tests.acceptance.tfdata_comparison

Both take the same records to normalised, flipped 224x224 random-resized-crops in
batches of float32. tf.data has them in memory; ours reads its array_record files. Each
runs in a process of its own, on this many threads as there are cores, in turn. Seconds
are those of the processor, so that other work on the machine does not count. Needs
TensorFlow (requirements-prepare.txt).
"""

import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from configs import imagenet2012
from dresnet_jax.data import catalog, preparation, prepared, sources
from dresnet_jax.data.calls import Call
from dresnet_jax.training import experiment
from tests.data import archives

WNIDS = ("n01440764", "n02119789", "n03710637", "n15075141")
PER_CLASS = 128
IMAGES = len(WNIDS) * PER_CLASS
BATCH = 64
SIZE = 224
ROUNDS = 9
CORES = len(os.sched_getaffinity(0))


def prepare(directory):
    """Makes the archives, and of them the dataset, by TFDS's own builder."""
    archives.imagenet2012(
        directory, WNIDS, PER_CLASS, make_image=archives.textured_image
    )
    dataset = archives.small("imagenet2012", train=IMAGES, validation=0, test=3)
    builder, _ = prepared.find(dataset.name, str(directory / "data"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        archives.register(monkeypatch, builder, directory)
        preparation.prepare(dataset, str(directory / "data"), str(directory))
    return sources.open_splits(dataset, str(directory / "data"))["train"]


def ours(records):
    """Batches by streaming, finished by the jitted program."""
    import jax

    config = imagenet2012.get_config()
    config.data.batch_size = BATCH
    config.data.num_threads = CORES
    config.data.num_workers = 0
    exp = experiment.build(config)
    calls = [Call(step, 1) for step in range(IMAGES // BATCH)]
    key = jax.random.key(0)

    @jax.jit
    def finish(inputs, step):
        return exp.batch(inputs, key, step)

    def epoch():
        read = exp.inputs.data(exp.inputs.place({"train": records}), 0, calls)
        for call, (inputs, _) in zip(calls, read, strict=True):
            batch = finish(inputs, call.start)
            assert batch.images.shape == (BATCH, SIZE, SIZE, 3)
            jax.block_until_ready(batch)

    return epoch


def tf_data(records, *, as_float):
    """The usual pipeline of TensorFlow; without `as_float` it stops at uint8."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    data = tf.constant([image for image, _ in records.read(range(IMAGES))])
    mean = 255 * tf.constant(catalog.IMAGENET_MEAN)
    std = 255 * tf.constant(catalog.IMAGENET_STD)

    def view(image):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(image),
            tf.zeros((1, 0, 4)),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        box = tf.concat([begin[:2], size[:2]], axis=0)
        pixels = tf.image.decode_and_crop_jpeg(image, box, channels=3)
        pixels = tf.image.resize(pixels, (SIZE, SIZE))
        pixels = tf.image.random_flip_left_right(pixels)
        return (pixels - mean) / std if as_float else tf.cast(pixels, tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = CORES
    batches = (
        tf.data.Dataset.from_tensor_slices(data)
        .shuffle(IMAGES)
        .map(view, num_parallel_calls=CORES)
        .batch(BATCH)
        .prefetch(2)
        .with_options(options)
    )

    def epoch():
        for batch in batches:
            assert batch.shape == (BATCH, SIZE, SIZE, 3)

    return epoch


PIPELINES = {
    "ours": ours,
    "tf.data": lambda records: tf_data(records, as_float=True),
    "tf.data to uint8": lambda records: tf_data(records, as_float=False),
}


def work(name, records, pipe):
    """Runs an epoch whenever asked to, and prints the seconds it took."""
    epoch = PIPELINES[name](records)
    epoch()
    pipe.send(None)
    while pipe.recv():
        start = time.perf_counter(), time.process_time()
        epoch()
        pipe.send((time.perf_counter() - start[0], time.process_time() - start[1]))


def main():
    context = multiprocessing.get_context("spawn")
    speeds = {name: [] for name in PIPELINES}
    with tempfile.TemporaryDirectory() as directory:
        records = prepare(Path(directory))
        size = np.mean([len(image) for image, _ in records.read(range(IMAGES))])
        pipes, processes = {}, []
        for name in PIPELINES:
            pipes[name], theirs = context.Pipe()
            arguments = (name, records, theirs)
            processes.append(context.Process(target=work, args=arguments, daemon=True))
            processes[-1].start()
            # So that `recv` ends with an error where the process does.
            theirs.close()
            pipes[name].recv()
        for _ in range(ROUNDS):
            for name, pipe in pipes.items():
                pipe.send(True)
                wall, processor = pipe.recv()
                speeds[name].append((IMAGES / processor, IMAGES / wall / CORES))
        for pipe in pipes.values():
            pipe.send(False)
        for process in processes:
            process.join()
    print(f"{IMAGES} JPEGs of {size / 1000:.0f} kB, {CORES} threads, {ROUNDS} rounds")
    ours = np.asarray(speeds["ours"])
    result = {}
    for name, value in speeds.items():
        ratios = ours / np.asarray(value)
        by_processor, by_clock = np.median(value, axis=0)
        low, high = ratios[:, 0].min(), ratios[:, 0].max()
        result[name] = float(np.median(ratios[:, 0]))
        print(
            f"{name:18s}{by_processor:6.0f} images/s per core of processor time "
            f"({by_clock:.0f} by the clock); ours is {result[name]:.2f} x "
            f"({low:.2f}..{high:.2f}), {np.median(ratios[:, 1]):.2f} x by the clock"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
