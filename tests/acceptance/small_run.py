"""A small run that takes seconds, and what it left."""

import json
import time

import jax
import numpy as np
from etils import epath

from dresnet_jax.training import checkpointing, experiment, metrics, workdir

# A small network on digits: 40 steps, a little over two epochs.
SMALL = (
    "--config=configs/digits.py",
    "--config.model.width=8",
    "--config.model.blocks_per_stage=(1, 1, 1, 1)",
    "--config.train.num_steps=40",
    "--config.train.log_every_steps=1",
    "--config.train.checkpoint_every_steps=6",
)


def last_json(output):
    return json.loads(output.splitlines()[-1])


def final_state(directory):
    """The leaves of the newest checkpoint, as NumPy arrays."""
    directory = epath.Path(directory)
    parts = experiment.build(workdir.read_config(directory))
    restored = checkpointing.restore(directory, parts.create_state(abstract=True))
    assert restored.step == 40
    state = restored.state.replace(key=jax.random.key_data(restored.state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def timeless_lines(directory):
    """The lines of metrics.jsonl, without the figures that are times."""
    times = ("images_per_second", "data_wait")
    return [
        {name: value for name, value in line.items() if name not in times}
        for line in metrics.read(epath.Path(directory))
    ]


def signal_at(process, directory, step, number):
    """Sends a signal to a training that has logged a step; returns its last words."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        lines = metrics.read(directory)
        if lines and lines[-1]["step"] >= step:
            process.send_signal(number)
            return process.communicate(timeout=100)[1]
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    raise TimeoutError(f"Step {step} was never logged.")
