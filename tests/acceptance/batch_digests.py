"""Prints the SHA-256 of each batch of a run from a step on: `batch_digests.py STEP`."""

import hashlib
import sys

import jax
import numpy as np

from configs import digits
from dresnet_jax.data import pipeline, sources
from dresnet_jax.training import experiment, sharding

STEPS = 200


def main(start):
    config = digits.get_config()
    config.data.flip = True
    config.data.cut_out = 3
    config.data.mix_up = 0.4
    config.data.cut_mix = 1.0
    parts = experiment.build(config)
    train = sources.load(parts.dataset, config.data.data_dir)["train"]
    replicated = sharding.replicated(parts.mesh)
    key = jax.random.key(config.seed)

    @jax.jit
    def make(images, labels, order, step):
        batch = pipeline.train_batch(parts.recipe, images, labels, order, key, step)
        over_devices = sharding.split_batch(parts.mesh)
        return jax.lax.with_sharding_constraint(batch, over_devices)

    images, labels = jax.device_put((train.images, train.labels), replicated)
    for step in range(start, STEPS):
        epoch = step // parts.steps_per_epoch
        order = pipeline.epoch_order(key, epoch, len(train.labels))
        batch = make(images, labels, jax.device_put(order, replicated), step)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(batch):
            digest.update(np.asarray(leaf).tobytes())
        print(step, digest.hexdigest())


if __name__ == "__main__":
    main(int(sys.argv[1]))
