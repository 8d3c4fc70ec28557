"""Each field of a config is checked by its range, with one form of message."""

import math

import pytest

from dresnet_jax import defaults
from dresnet_jax.data import images
from dresnet_jax.errors import UserError
from dresnet_jax.ranges import RANGES
from dresnet_jax.training import checks


def _set(path, value):
    config = defaults.get_config().unlock()
    *groups, name = path.split(".")
    group = config
    for part in groups:
        group = group[part]
    with config.ignore_type():
        group[name] = value
    return config


@pytest.mark.parametrize("path", RANGES)
def test_a_field_is_held_to_its_range(path):
    interval = RANGES[path]
    ends = [float(end) for end in interval[1:-1].split(", ")]
    checks.check(defaults.get_config())
    for end, outside, bracket in zip(
        ends, (-1, 1), (interval[0], interval[-1]), strict=True
    ):
        if math.isinf(end):
            continue
        if bracket in "[]":
            checks.check(_set(path, end))
        else:
            with pytest.raises(UserError, match=f"{path} = "):
                checks.check(_set(path, end))
        with pytest.raises(UserError, match=f"{path} = .* must be "):
            checks.check(_set(path, end + outside))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_is_finite(value):
    with pytest.raises(UserError, match=r"learning_rate = -?(nan|inf) must be"):
        checks.check(_set("optimizer.learning_rate", value))


def test_the_newest_pixel_rule_is_the_highest():
    assert RANGES["data.pixel_rule"] == f"[1, {images.RULE}]"
