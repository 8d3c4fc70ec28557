"""Changes of every kind of block leave the answers as they are, to 1e-10 in float64."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax.errors import UserError
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import steps
from tests.structure.test_changes import CHANGES, config, first_batch, of_kind, refused

__all__ = ["config"]


def in_float64(one, other, images):
    """The largest relative difference of two networks' logits, in double precision."""

    def logits(result):
        layers = dataclasses.replace(
            result.experiment.model.spec.layers, dtype="float64"
        )
        spec = dataclasses.replace(result.experiment.model.spec, layers=layers)
        model = result.experiment.model.clone(spec=spec)
        params, stats = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x), jnp.float64),
            (result.state.params, result.state.batch_stats),
        )
        trained, _ = jax.jit(
            lambda p, s, x: steps.forward(model, p, s, x, result.state.key)
        )(params, stats, images)
        variables = {"params": params, "batch_stats": stats}
        return trained, jax.jit(lambda v, x: model.apply(v, x, train=False))(
            variables, images
        )

    images = jnp.asarray(np.asarray(images), jnp.float64)
    pairs = zip(logits(one), logits(other), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in pairs)


def in_double(leaf):
    return leaf.astype("float64") if leaf.dtype == jnp.float32 else leaf


@pytest.mark.slow
def test_every_change_is_exact_in_double_precision(config):
    result = {}
    for block, kind in itertools.product(sorted(BLOCKS), sorted(CHANGES)):
        before = of_kind(config, block)
        batch = first_batch(before)
        with jax.enable_x64(True):
            # A third is not the same in both precisions.
            state = jax.tree.map(in_double, before.state)
            before = Network(before.experiment, state)
            if why := refused(block, kind):
                with pytest.raises(UserError, match=why):
                    CHANGES[kind](before)
                print(f"{block}, {kind}: refused, {why}")
                continue
            after = CHANGES[kind](before)
            result[block, kind] = in_float64(before, after, batch.images)
            print(f"{block}, {kind}: {result[block, kind]:.1e}")
    # Mixed blocks take connections alone.
    assert len(result) == 3 * len(BLOCKS) - 2
    assert max(result.values()) <= 1e-10
