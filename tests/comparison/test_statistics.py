"""The statistics agree with SciPy and statsmodels, and find what is there."""

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import multitest, weightstats

from dresnet_jax.comparison import statistics

VALUES = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=2)


@given(VALUES)
def test_the_interval_is_that_of_statsmodels(values):
    result = statistics.estimate(values)
    low, high = weightstats.DescrStatsW(values).tconfint_mean(1 - statistics.LEVEL)
    np.testing.assert_allclose(
        (result.mean, result.low, result.high),
        (np.mean(values), low, high),
        rtol=1e-9,
        atol=1e-9,
    )


def test_an_interval_ends_where_the_figure_does():
    result = statistics.estimate((1.0, 0.98, 1.0), statistics.SHARE)
    assert result.low < 0.98
    assert result.high == 1
    assert statistics.estimate((0.1, 2.0), statistics.NOT_NEGATIVE).low == 0
    assert statistics.estimate((1.0, 0.98, 1.0)).high > 1


@given(st.lists(st.tuples(*(st.integers(0, 1000),) * 2), min_size=3, max_size=20))
def test_the_difference_is_that_of_the_paired_test(pairs):
    values, reference = np.asarray(pairs).T / 1000
    result = statistics.paired(values, reference)
    differences = values - reference
    if np.ptp(differences) < 1e-9:
        assert result.p == 1 if not differences.any() else np.isnan(result.p)
        return
    expected = stats.ttest_rel(values, reference)
    interval = expected.confidence_interval(statistics.LEVEL)
    np.testing.assert_allclose(result.p, expected.pvalue, rtol=1e-6)
    np.testing.assert_allclose(
        (result.estimate.low, result.estimate.high), interval, atol=1e-9
    )
    np.testing.assert_allclose(
        result.effect, expected.statistic / np.sqrt(len(pairs)), rtol=1e-6
    )


@pytest.fixture(scope="module")
def little_garbage():
    """Leaves little to collect for statsmodels, which collects at each call."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("little_garbage")
@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_the_correction_is_that_of_statsmodels(p):
    expected = multitest.multipletests(p, method="holm")[1]
    np.testing.assert_allclose(statistics.holm(p), expected, rtol=1e-12)


def test_what_is_not_known_is_not_counted():
    result = statistics.holm([0.01, float("nan"), 0.04])
    np.testing.assert_allclose(result, [0.02, np.nan, 0.04])
    single = statistics.paired([0.9], [0.8])
    assert np.isnan(single.p)
    assert np.isnan(single.estimate.low)


@pytest.mark.parametrize("value", [1.0, 0.8])
def test_seeds_that_differ_by_the_same_tell_nothing_of_chance(value):
    # As float32 stores them.
    result = statistics.paired(np.float32([value, value + 0.1]), np.float32([0.9, 1.0]))
    assert result.estimate.mean == pytest.approx(value - 0.9, rel=1e-5)
    values = result.p, result.effect, result.estimate.low, result.estimate.high
    assert np.all(np.isnan(values))


def test_seeds_that_do_not_differ_show_no_difference():
    result = statistics.paired([0.8, 0.9], [0.8, 0.9])
    assert (result.estimate.mean, result.p, result.effect) == (0, 1, 0)


def test_a_planted_difference_is_found_and_a_null_is_not():
    """10 seeds of a spread of 0.002, as measured; 400 studies of 6 comparisons."""
    random = np.random.default_rng(0)
    studies, comparisons, seeds, alpha = 400, 6, 10, 0.05
    result, wrong = 0, 0
    for _ in range(studies):
        reference = random.normal(0.9, 0.002, seeds)
        variants = random.normal(0.9, 0.002, (comparisons, seeds))
        variants[0] += 0.004
        p = statistics.holm([statistics.paired(v, reference).p for v in variants])
        result += p[0] < alpha
        wrong += min(p[1:]) < alpha
    print(
        f"\na difference of two spreads is found in {result / studies:.0%} of studies, "
        f"one that is not there in {wrong / studies:.1%}"
    )
    assert result / studies > 0.75
    # At most alpha, with room for 400 draws of it: three standard errors.
    assert wrong / studies < alpha + 3 * np.sqrt(alpha * (1 - alpha) / studies)
