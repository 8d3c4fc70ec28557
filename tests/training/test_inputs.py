"""The input pipeline is chosen by size and memory, calls as the config says."""

import numpy as np
import pytest

from configs import digits, synthetic
from dresnet_jax import defaults
from dresnet_jax.data import lookup
from dresnet_jax.data.calls import Call
from dresnet_jax.errors import UserError
from dresnet_jax.training import experiment, inputs, sharding
from tests.conftest import run_python

# Of digits: 1,257 images of 64 bytes.
SIZE = 1257 * 64


@pytest.fixture
def config():
    return digits.get_config()


def choose(config, monkeypatch, memory):
    monkeypatch.setattr(sharding, "device_bytes", lambda: memory)
    return experiment.build(config).inputs


def test_auto_takes_resident_where_it_fits(config, monkeypatch):
    chosen = choose(config, monkeypatch, memory=4 * SIZE)
    assert isinstance(chosen, inputs.Resident)
    assert not chosen.sharded
    assert chosen.description.startswith("resident, whole on each device: 0.1 MiB")


def test_auto_falls_to_streaming_where_memory_is_too_small(config, monkeypatch):
    chosen = choose(config, monkeypatch, memory=4 * SIZE - 4)
    assert isinstance(chosen, inputs.Streaming)
    assert "more than a quarter of the memory of 1 devices" in chosen.description


def test_devices_that_are_not_here_say_their_memory(config, monkeypatch):
    monkeypatch.setattr(sharding, "device_bytes", lambda: 100 * SIZE)
    chosen = experiment.build(config, device_bytes=SIZE).inputs
    assert isinstance(chosen, inputs.Streaming)


def test_resident_is_refused_where_memory_is_too_small(config, monkeypatch):
    config.data.mode = "resident"
    with pytest.raises(UserError, match=r"resident is not possible: 0.1 MiB of images"):
        choose(config, monkeypatch, memory=4 * SIZE - 4)


@pytest.mark.parametrize(
    "fields", [{"min_crop_area": 0.3}, {"rand_augment_layers": 2}], ids=str
)
def test_what_is_done_on_the_host_needs_streaming(config, fields):
    config.data.update(fields)
    assert isinstance(experiment.build(config).inputs, inputs.Streaming)
    config.data.mode = "resident"
    with pytest.raises(UserError, match="rand_augment_layers work on the host"):
        experiment.build(config)


def test_an_unknown_mode_is_refused(config):
    config.data.mode = "residnet"
    with pytest.raises(UserError, match="Did you mean 'resident'"):
        experiment.build(config)


@pytest.mark.parametrize("asked", [0, 1437])
def test_more_validation_examples_than_there_are_are_refused(config, asked):
    config.data.validation_examples = asked
    with pytest.raises(UserError, match="between 1 and the 1436 that digits has"):
        experiment.build(config)


def test_validation_examples_are_taken_from_training(config):
    config.data.validation_examples = 437
    exp = experiment.build(config)
    sizes = {name: len(split) for name, split in exp.open_splits().items()}
    assert sizes == {"train": 1000, "validation": 437, "test": 360}


def test_fewer_training_examples_leave_the_other_splits_as_they_are(config):
    whole = experiment.build(config).open_splits()
    config.data.train_examples = 500
    part = experiment.build(config).open_splits()
    np.testing.assert_array_equal(part["train"].images, whole["train"].images[:500])
    for name in ("validation", "test"):
        np.testing.assert_array_equal(part[name].images, whole[name].images)


def test_records_of_a_part_are_the_same_records(config):
    config.data.dataset = "fashion_mnist"
    whole = lookup.from_config(config.data)
    config.data.train_examples = 5000
    part = lookup.from_config(config.data)
    assert part.tfds_range("train") == ("train", 0, 5000)
    for name in ("validation", "test"):
        assert part.tfds_range(name) == whole.tfds_range(name)


@pytest.mark.parametrize("asked", [0, 1258])
def test_more_training_examples_than_there_are_are_refused(config, asked):
    config.data.train_examples = asked
    with pytest.raises(UserError, match="between 1 and the 1257 that digits has"):
        experiment.build(config)


def test_synthetic_data_has_a_size_of_its_own():
    config = synthetic.get_config()
    config.data.train_examples = 4
    with pytest.raises(UserError, match=r"synthetic has data\.num_examples instead"):
        experiment.build(config)


def test_calls_end_at_epochs_checkpoints_and_the_last_step():
    config = synthetic.get_config()
    config.data.num_examples = 10 * config.data.batch_size
    config.train.num_steps = 23
    config.train.steps_per_call = 4
    config.train.checkpoint_every_steps = 15
    calls = experiment.build(config).calls(start=1)
    assert calls == [
        *(Call(1, 4), Call(5, 4), Call(9, 1)),
        *(Call(10, 4), Call(14, 1)),
        *(Call(15, 4), Call(19, 1)),
        *(Call(20, 1), Call(21, 1), Call(22, 1)),
    ]


def test_a_resident_set_in_parts_stays_in_parts():
    """The program moves the batch between devices, and never the set."""
    program = """
import dataclasses, re
from configs import digits
from dresnet_jax import defaults
from dresnet_jax.training import experiment
config = digits.get_config()
config.model.width = 4
config.model.blocks_per_stage = (1, 1)
parts = experiment.build(config)
sharded = dataclasses.replace(parts.inputs, sharded=True)
parts = dataclasses.replace(parts, inputs=sharded)
text = parts.compile_train_step().as_text()
print(max(int(n) for n in re.findall(r"u8\\[(\\d+),8,8,1\\]", text)))
"""
    code, output, errors = run_python("-c", program, devices=8)
    assert code == 0, errors
    # An eighth of 1,257 examples, filled up; the batch has 64.
    assert int(output) == 158


def test_the_rows_of_one_process_are_all_rows():
    mesh = sharding.make_mesh(defaults.get_config().sharding, 8)
    assert sharding.local_rows(mesh, 8).tolist() == list(range(8))


def test_memory_of_a_device_is_known():
    assert sharding.device_bytes() > 2**30
