"""Prints the SHA-256 of each global batch of a run, from a step on, by each pipeline.

python -m tests.acceptance.batch_digests --data_dir=DIR --start=37

With `--processes` and `--process` it is one of several processes, on one machine.
"""

import dataclasses
import hashlib

import jax
import numpy as np
from absl import app, flags
from jax.experimental import multihost_utils

from configs import fashion_mnist
from dresnet_jax.data import sources
from dresnet_jax.training import experiment

STEPS = 200
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Of Fashion-MNIST.", required=True)
_START = flags.DEFINE_integer("start", 0, "The first step.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many there are.")
_PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is.")
_PORT = flags.DEFINE_integer("port", 0, "Of the first process.")


def main(_):
    if _PROCESSES.value > 1:
        jax.distributed.initialize(
            f"localhost:{_PORT.value}", _PROCESSES.value, _PROCESS.value
        )
    config = fashion_mnist.get_config()
    config.data.data_dir = _DATA_DIR.value
    config.data.cut_out = 3
    config.data.mix_up = 0.4
    config.data.cut_mix = 1.0
    config.train.num_steps = STEPS
    config.train.steps_per_call = 3
    config.data.mode = "resident"
    exp = experiment.build(config)
    pipelines = {
        "resident": exp.inputs,
        "sharded": dataclasses.replace(exp.inputs, sharded=True),
    }
    config.data.mode = "streaming"
    pipelines["streaming"] = experiment.build(config).inputs
    stored = {"train": sources.open_splits(exp.dataset, _DATA_DIR.value)["train"]}
    # The resident pipeline's form holds the images of both its kinds.
    in_memory = exp.inputs.open(stored)
    for name, one in pipelines.items():
        splits = stored if name == "streaming" else in_memory
        for step, digest in digests(dataclasses.replace(exp, inputs=one), splits):
            if jax.process_index() == 0:
                print(name, step, digest, flush=True)


def digests(exp, splits):
    """The number and the digest of each step's batch."""
    key = jax.random.key(exp.config.seed)
    make = jax.jit(exp.batch)
    calls = exp.calls(_START.value)
    data = exp.inputs.place(splits)
    given = exp.inputs.data(data, exp.config.seed, calls)
    for call, (inputs, _) in zip(calls, given, strict=True):
        for i in range(call.steps):
            batch = make(inputs, key, call.start + i, i)
            leaves = multihost_utils.process_allgather(
                jax.tree.leaves(batch), tiled=True
            )
            digest = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves))
            yield call.start + i, digest.hexdigest()


if __name__ == "__main__":
    app.run(main)
