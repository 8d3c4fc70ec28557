"""The input is timed alone, next to the step, and together with it."""

import pytest

from dresnet_jax.costs import input_speed, tables
from dresnet_jax.errors import UserError


def test_each_pipeline_has_three_rows(small_config):
    # Before it is timed, what was read ahead is used up, which each thread adds to.
    small_config.data.num_threads = 1
    rows = input_speed.measure(small_config, input_speed.MODES, runs=2, steps=1)
    parts = ("pipeline", "step", "both")
    expected = [(mode, part) for mode in input_speed.MODES for part in parts]
    assert [(row.mode, row.what) for row in rows] == expected
    for row in rows:
        low, high = row.images_per_second_range
        assert 0 < low <= row.images_per_second <= high
        assert 0 <= row.data_wait < 1
    table = tables.input_speed_table(rows).splitlines()
    assert len(table) == 7
    assert table[3].startswith("resident, both ")


@pytest.mark.slow
def test_steps_are_whole_calls(small_config):
    small_config.train.steps_per_call = 4
    (row, *_) = input_speed.measure(small_config, ["resident"], runs=1, steps=1)
    assert row.images_per_second > 0


def test_no_mode_is_refused(small_config):
    with pytest.raises(UserError, match="No mode is named"):
        input_speed.measure(small_config, [], runs=1, steps=1)


def test_an_unknown_mode_is_refused(small_config):
    with pytest.raises(UserError, match="Did you mean 'resident'"):
        input_speed.measure(small_config, ["residant"], runs=1, steps=1)
