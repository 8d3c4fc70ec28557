"""A spec refuses what is wrong, and says which form is best."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax.connections import topology
from dresnet_jax.connections.gates import GATES
from dresnet_jax.connections.spec import (
    MAX_GROWTH,
    STACKED_FROM,
    ConnectionSpec,
    automatic_form,
)
from dresnet_jax.errors import UserError

CHANNELS = (4, 4, 4, 8, 8)
STAGES = (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gate", "sigmoit", "Did you mean 'sigmoid'"),
        ("form", "foldet", "Did you mean 'folded'"),
        ("sharpness_granularity", "per_blok", "Did you mean 'per_block'"),
        ("weights", "per_edgy", "Did you mean 'per_edge'"),
        ("projection", "per_edgy", "Did you mean 'per_edge'"),
        ("unroll", 0, "unroll = 0 must be a whole number"),
        ("projection_rank", 0, "projection_rank = 0 must be a whole number"),
        ("projection_rank", 2.5, "projection_rank = 2.5 must be a whole number"),
        ("initial_gate", 1.5, r"outside \(0, 1\)"),
        ("initial_gate", "publisht", "Did you mean 'published'"),
        (
            "initial_gate",
            "closed",
            "not 'sigmoid': use one of identity, tanh, hard_sigmoid",
        ),
        ("sharpness", 0.0, "above 0"),
    ],
)
def test_wrong_fields_are_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        ConnectionSpec(topology.dense(STAGES), **{field: value})


@pytest.mark.parametrize("gate", sorted(GATES))
@pytest.mark.parametrize("blocks", [3, 9, 24])
def test_many_sources_without_a_projection_start_as_open_as_is_bounded(gate, blocks):
    spec = ConnectionSpec(topology.dense((0,) * blocks), gate, projection="none")
    weights = {spec.starting_weight(i, k) for i, k in spec.topology.edges}
    (weight,) = weights
    counts = [len(spec.topology.sources(i)) for i in spec.topology.readers]

    @jax.jit
    def of_all():
        """F(w) of an only source, and what those of each reader add up to."""
        opened = [spec.gate_function(jnp.full(n, weight), jnp.ones(())) for n in counts]
        only = spec.gate_function(jnp.asarray([weight]), jnp.ones(()))
        return only[0], jnp.stack([x.sum() for x in opened])

    value, sums = of_all()
    growth = np.prod(1 + np.asarray(sums))
    assert growth == pytest.approx(spec.start_growth, rel=1e-3)
    if blocks == 3:
        assert value == pytest.approx(0.5)
        assert growth < MAX_GROWTH
    else:
        assert growth == pytest.approx(MAX_GROWTH, rel=1e-3)


@pytest.mark.parametrize("initial_gate", [0.5, "1/n^2", "published"])
def test_softmax_that_must_choose_may_double_images_at_each_reader(initial_gate):
    dense = topology.dense((0,) * 9)
    spec = ConnectionSpec(dense, "softmax", initial_gate, projection="none")
    assert spec.start_growth == 2**7
    assert spec.gate_function is GATES["softmax"].function


def test_softmax_without_a_base_must_choose():
    free = topology.from_edges((0, 0), [(1, 0), (2, 0), (2, 1), (3, 2)], "learned")
    spec = ConnectionSpec(free, "softmax", "bounded")
    assert spec.gate_function is GATES["softmax"].function
    assert spec.starting_weight(2, 1) == 0


def test_what_is_projected_starts_half_open():
    stages = (*(0,) * 9, *(1,) * 9)
    spec = ConnectionSpec(topology.dense(stages), projection="between_stages")
    assert spec.starting_weight(12, 3) == 0
    assert spec.starting_weight(9, 3) < -2
    assert spec.shared_projections(9, 3) == ()
    assert spec.shared_projections(12, 3) == ("stage_0_narrowed", "stage_0_to_1")


def test_without_a_projection_channels_have_to_fit():
    spec = ConnectionSpec(topology.dense(STAGES), projection="none")
    with pytest.raises(
        UserError, match=r"block 4, whose input has 8 channels, to .* 1"
    ):
        spec.check(CHANNELS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "cannot express projection 'per_edge'"),
        ({"projection": "none", "normalise_sources": True}, "normalised sources"),
        ({"projection": "per_stage", "weights": "per_channel"}, "'per_channel' with"),
    ],
)
def test_what_stacked_cannot_express_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        ConnectionSpec(topology.dense(STAGES), form="stacked", **fields)


@pytest.mark.parametrize(
    ("depth", "projection", "platform", "form"),
    [
        (64, "none", "tpu", "stacked"),
        (64, "per_stage", "gpu", "stacked"),
        (64, "none", "cpu", "folded"),
        (64, "per_edge", "tpu", "folded"),
        (STACKED_FROM - 1, "none", "tpu", "folded"),
    ],
)
def test_the_automatic_form_follows_its_rules(depth, projection, platform, form):
    dense = topology.dense([0] * depth)
    spec = ConnectionSpec(dense, projection=projection)
    assert automatic_form(spec, platform)[0] == form
