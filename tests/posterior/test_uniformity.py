"""The exact band of the empirical distribution function, by enumeration of all ranks and by simulation."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from rws_jax.posterior.dreams import uniformity

# Every vector of ranks that few simulations of few draws can have, one in a column: all are equally likely.
FEW = [(4, 3), (6, 2), (3, 7), (9, 1)]

SIZES = [(200, 19), *(pytest.param(*size, marks=pytest.mark.slow) for size in [(1000, 99), (300, 250)])]


def all_ranks(num_simulations, num_samples):
    return np.array(list(itertools.product(range(num_samples + 1), repeat=num_simulations))).T


def statistic(ranks, num_samples):
    """The smallest two-sided tail probability, written out with SciPy."""
    smallest = np.ones(ranks.shape[1])
    for point in range(1, num_samples + 1):
        below = (ranks < point).sum(axis=0)
        null = binom(len(ranks), point / (num_samples + 1))
        smallest = np.minimum(smallest, 2 * np.minimum(null.cdf(below), null.sf(below - 1)))
    return smallest


@pytest.mark.parametrize(("num_simulations", "num_samples"), FEW)
def test_p_values_are_exact(num_simulations, num_samples):
    ranks = all_ranks(num_simulations, num_samples)
    smallest = statistic(ranks, num_samples)
    exact = [(smallest <= value * (1 + 1e-9)).mean() for value in smallest]
    np.testing.assert_allclose(uniformity.p_values(ranks, num_samples), exact, atol=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize(("num_simulations", "num_samples"), FEW)
def test_the_band_is_left_where_the_p_value_is_small(num_simulations, num_samples, level):
    ranks = all_ranks(num_simulations, num_samples)
    band = uniformity.band(num_simulations, num_samples, level)
    ecdf = uniformity.ecdf(ranks, num_samples)
    inside = ((ecdf >= band.low[:, None]) & (ecdf <= band.high[:, None])).all(axis=0)
    assert inside.mean() >= level - 1e-12
    np.testing.assert_array_equal(inside, uniformity.p_values(ranks, num_samples) > 1 - level + 1e-12)


@pytest.mark.parametrize(("num_simulations", "num_samples"), SIZES)
def test_size_of_the_test_and_coverage_of_the_band(num_simulations, num_samples):
    num = 4000
    ranks = np.random.default_rng(0).integers(0, num_samples + 1, size=(num_simulations, num))
    p_values = uniformity.p_values(ranks, num_samples)
    for size in (0.01, 0.05, 0.5):  # of this many, no attained value is far from a size
        assert abs((p_values <= size).mean() - size) < 5 * np.sqrt(size * (1 - size) / num) + 0.001
    band = uniformity.band(num_simulations, num_samples)
    ecdf = uniformity.ecdf(ranks, num_samples)
    inside = ((ecdf >= band.low[:, None]) & (ecdf <= band.high[:, None])).all(axis=0)
    assert abs(inside.mean() - 0.95) < 5 * np.sqrt(0.95 * 0.05 / num) + 0.001


def test_points_are_ranks_at_most_99_of_them():
    assert uniformity.evaluation_points(3).tolist() == [1, 2, 3]
    assert len(uniformity.evaluation_points(99)) == 99
    points = uniformity.evaluation_points(999)
    assert points.tolist() == list(range(10, 1000, 10))
    assert len(uniformity.evaluation_points(150)) == 99
    np.testing.assert_allclose(uniformity.band(10, 999).points, points / 1000)


def test_shapes_and_limits():
    ranks = np.random.default_rng(1).integers(0, 10, size=(50, 2, 3))
    p_values = uniformity.p_values(ranks, 9)
    assert p_values.shape == (2, 3)
    np.testing.assert_allclose(p_values[1, 2], uniformity.p_values(ranks[:, 1, 2], 9))
    assert uniformity.p_values(ranks[:, 0, 0], 9).shape == ()
    assert uniformity.p_values(np.zeros((50, 0), int), 9).shape == (0,)
    # All ranks zero: P(R_1 = 50) = 10^-50, twice, at the first point; the union over nine points bounds it.
    assert 0 < uniformity.p_values(np.zeros(50, int), 9) <= 9 * 2e-50 * (1 + 1e-9)
    assert uniformity.p_values(np.zeros(1000, int), 99) <= 1e-300


def test_small_p_values_keep_their_precision():
    """Just above where a bound takes over, the exact value is below the bound and above the largest of its terms."""
    ranks = np.array([0] * 7 + [9] * 3)
    p_value, smallest = uniformity.p_values(ranks, 9), statistic(ranks[:, None], 9)[0]
    assert smallest / 2 <= p_value <= 9 * smallest
    ranks = np.array([0] * 9 + [9])  # P(R_1 >= 9) = 10 * 0.9 * 0.1^9 + 0.1^10, and the same from the other end
    p_value = uniformity.p_values(ranks, 9)
    assert 9.1e-9 < p_value < 9 * 2 * 9.1e-9


def test_many_are_one_by_their_smallest():
    assert uniformity.overall_p_value(np.array([0.5, 0.02, 0.3, 0.9])) == pytest.approx(0.08)
    assert uniformity.overall_p_value(np.array([0.5, 0.9])) == 1.0
