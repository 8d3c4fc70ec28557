"""Streaming reads what the resident pipeline has, and names records it cannot read."""

import dataclasses
import pickle
import shutil

import numpy as np
import pytest

from dresnet_jax.data import pipeline, preparation, prepared, sources, streaming
from dresnet_jax.data.calls import Call
from dresnet_jax.errors import UserError
from tests.data import archives
from tests.data.archives import needs_tensorflow
from tests.data.test_pipeline import EXAMPLES, recipe, split

ROWS = np.arange(6)
CIFAR = archives.small("cifar10", train=90, validation=10, test=20)


def train_batches(examples=None, rows=ROWS, calls=((0, 1), (1, 2)), **fields):
    calls = [Call(*call) for call in calls]
    return streaming.TrainBatches(
        examples or split(), recipe(**fields), seed=3, rows=rows, calls=calls
    )


def test_a_call_holds_the_examples_of_its_steps_in_the_epochs_order():
    batches = train_batches(calls=[(start, 2) for start in (0, 2, 4)])
    labels = np.concatenate([batches[i].labels for i in range(3)])
    for step in range(6):
        order = pipeline.epoch_order(3, step // 3, EXAMPLES)
        expected = order[step % 3 * 6 :][:6]
        np.testing.assert_array_equal(labels[step], expected)
    images = batches[0].images
    assert images.shape == (2, 6, 4, 4, 1)
    np.testing.assert_array_equal(images[..., 0, 0, 0], batches[0].labels)
    assert batches[0].mask.all()


@pytest.mark.parametrize("min_crop_area", [0.0, 0.2])
def test_processes_read_the_rows_of_one_batch(min_crop_area):
    view = dataclasses.replace(recipe().view, min_crop_area=min_crop_area)
    random = np.random.RandomState(0)
    examples = dataclasses.replace(
        split(), images=random.randint(256, size=(EXAMPLES, 4, 4, 1)).astype(np.uint8)
    )
    whole, *parts = (
        train_batches(examples, rows=rows, view=view)[1]
        for rows in (ROWS, ROWS[:2], ROWS[2:])
    )
    for name in ("images", "labels"):
        result = np.concatenate([getattr(part, name) for part in parts], axis=1)
        np.testing.assert_array_equal(result, getattr(whole, name))


@pytest.mark.parametrize("batch_size", [1, 6, 20, 32])
def test_evaluation_sees_each_example_once(batch_size):
    rows = np.arange(batch_size)
    batches = streaming.EvalBatches(split(), recipe(batch_size=batch_size), rows)
    result = [batches[i] for i in range(len(batches))]
    assert all(len(batch.labels) == batch_size for batch in result)
    seen = np.concatenate([batch.labels[batch.mask] for batch in result])
    np.testing.assert_array_equal(seen, np.arange(EXAMPLES))
    for batch in result:
        images = batch.images[batch.mask, 0, 0, 0]
        np.testing.assert_array_equal(images, batch.labels[batch.mask])


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_ahead_keeps_the_order(workers):
    batches = train_batches(calls=[(start, 1) for start in range(9)])
    result = streaming.read_ahead(batches, threads=2, workers=workers)
    for index, batch in enumerate(result):
        np.testing.assert_array_equal(batch.labels, batches[index].labels)
    assert index == 8


def damaged(corrupt):
    return dataclasses.replace(split(), corrupt=corrupt)


def test_a_corrupt_example_is_named():
    batches = streaming.EvalBatches(damaged((7,)), recipe(), ROWS)
    with pytest.raises(sources.CorruptRecordError, match=r"example 7 cannot be read"):
        batches[1]
    result = train_batches(damaged(tuple(range(20))))
    with pytest.raises(sources.CorruptRecordError, match=r"example \d+ cannot be read"):
        result[0]


def test_where_the_config_says_so_the_next_example_stands_in():
    calls = [(0, 1), (1, 1), (2, 1)]
    whole = train_batches(calls=calls)
    result = train_batches(damaged((7, 8, 19)), calls=calls, skip_corrupt=True)
    stand_in = {7: 9, 8: 9, 19: 0}
    skipped = 0
    for i in range(3):
        expected = [stand_in.get(label, label) for label in whole[i].labels[0]]
        np.testing.assert_array_equal(result[i].labels[0], expected)
        skipped += (~result[i].mask).sum()
    order = pipeline.epoch_order(3, 0, EXAMPLES)[:18].tolist()
    assert skipped == (7 in order) + (8 in order) + (19 in order)


def test_where_the_config_says_so_evaluation_leaves_it_out():
    made = recipe(skip_corrupt=True)
    batch = streaming.EvalBatches(damaged((7,)), made, ROWS)[1]
    np.testing.assert_array_equal(batch.labels[batch.mask], [6, 8, 9, 10, 11])


def test_no_readable_example_is_an_error():
    result = train_batches(damaged(tuple(range(20))), skip_corrupt=True)
    with pytest.raises(sources.CorruptRecordError, match="No example can be read"):
        result[0]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """The data directory of a small CIFAR-10."""
    directory = tmp_path_factory.mktemp("cifar10")
    archives.cifar10(directory)
    data_dir = str(directory / "data")
    with pytest.MonkeyPatch.context() as monkeypatch:
        builder, _ = prepared.find("cifar10", data_dir)
        archives.register(monkeypatch, builder, directory)
        preparation.prepare(CIFAR, data_dir, str(directory))
    return data_dir


@pytest.fixture
def files(cifar, tmp_path):
    """The data directory and the training file of a copy that may be damaged."""
    shutil.copytree(f"{cifar}/cifar10", tmp_path / "cifar10")
    (path,) = tmp_path.glob("cifar10/*/cifar10-train*")
    return str(tmp_path), path


@needs_tensorflow
def test_records_are_read_in_any_process(cifar):
    records = sources.open_splits(CIFAR, cifar)["train"]
    expected = records.read([3, 80])
    assert pickle.loads(pickle.dumps(records)).read([3, 80]) == expected


@needs_tensorflow
def test_a_truncated_file_is_named(files):
    data_dir, path = files
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"train.array_record-0+-of-0+1 is truncated"):
        sources.open_splits(CIFAR, data_dir)
    path.unlink()
    with pytest.raises(UserError, match=r"truncated or missing: it has 0 of 100"):
        sources.open_splits(CIFAR, data_dir)


@needs_tensorflow
def test_a_corrupt_record_is_named_and_passed_over_by_both_pipelines(files):
    data_dir, path = files
    data = bytearray(path.read_bytes())
    # The 31st record's chunk, found by where its image begins.
    at = [i for i in range(len(data)) if data.startswith(b"\x89PNG", i)][30]
    data[at + 100] ^= 1
    path.write_bytes(data)
    records = sources.open_splits(CIFAR, data_dir)["train"]
    view = dataclasses.replace(recipe().view, size=32, channels=3)
    message = r"record 30 of .*cifar10-train.array_record-\S+ cannot be read"
    with pytest.raises(sources.CorruptRecordError, match=message):
        sources.load(records, view.evaluate, skip_corrupt=False)
    arrays = sources.load(records, view.evaluate, skip_corrupt=True)
    assert arrays.corrupt == (30,)
    np.testing.assert_array_equal(arrays.images[30], arrays.images[31])

    made = recipe(view=view, skip_corrupt=True)
    result = streaming.TrainBatches(records, made, 0, ROWS, [Call(0, 15)])[0]
    resident = streaming.TrainBatches(arrays, made, 0, ROWS, [Call(0, 15)])[0]
    np.testing.assert_array_equal(result.images, resident.images)
    assert (~result.mask).sum() == (~resident.mask).sum() == 1


@needs_tensorflow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_names": ("cat", "dog")}, "has 10 classes; the model is built for 2"),
        ({"image_size": 28}, r"shape \(32, 32, 3\); the model is built for \(28, 28"),
        (
            {"splits": {"train": 90, "validation": 20, "test": 20}},
            "has 100 train examples; validation asks for them up to the 110th",
        ),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused(cifar, fields, message):
    with pytest.raises(UserError, match=message):
        sources.open_splits(dataclasses.replace(CIFAR, **fields), cifar)
