"""A spec refuses what is wrong, and says which form is best."""

import pytest

from dresnet_jax.connections import topology
from dresnet_jax.connections.spec import STACKED_FROM, ConnectionSpec, automatic_form
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
        ("opening", 1.5, r"outside \(0, 1\)"),
        ("opening", "publisht", "Did you mean 'published'"),
        ("sharpness", 0.0, "above 0"),
    ],
)
def test_wrong_fields_are_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        ConnectionSpec(topology.dense(STAGES), **{field: value})


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
