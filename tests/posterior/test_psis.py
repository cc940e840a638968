"""Pareto-smoothed weights and k-hat of all units at once, held against ArviZ unit by unit."""

import sys
import warnings

import numpy as np
import pytest
from scipy.special import logsumexp

from rws_jax.posterior.samples import psis
from rws_jax.posterior.samples.psis import pareto_smoothed

RNG = np.random.default_rng(0)
SHIFT = -57.3  # weights are not normalised, and the evidence is their mean


def arviz_unit(log_w):
    """What ArviZ says of one unit: normalised smoothed log-weights and k-hat, called as its users call it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from arviz_stats.base import array_stats
        except ImportError:
            import arviz

            return arviz.psislw(log_w.copy())
        return array_stats.psislw(-log_w)


def units_of(*log_weights):
    return np.stack(log_weights, axis=1)


NORMAL = RNG.normal(size=1000) + SHIFT
HEAVY = RNG.standard_cauchy(size=1000) + SHIFT
NARROW = RNG.normal(size=1000) ** 2 + SHIFT  # of a guide with too light tails, k = 2 as K grows
WIDE = -(RNG.normal(size=1000) ** 2) + SHIFT
SOME_DEAD = np.where(RNG.random(1000) < 0.5, -np.inf, NORMAL)


@pytest.mark.floors
def test_all_units_equal_arviz_unit_by_unit():
    log_weights = units_of(NORMAL, HEAVY, NARROW, WIDE, SOME_DEAD, NORMAL[::-1]).reshape(1000, 2, 3)
    log_weights = np.asfortranarray(log_weights)  # as a transposed array of units is laid out
    before = log_weights.copy()
    smoothed, k = pareto_smoothed(log_weights)
    assert smoothed.shape == (1000, 2, 3)
    assert k.shape == (2, 3)
    np.testing.assert_array_equal(log_weights, before)
    for unit in np.ndindex(2, 3):
        own = (slice(None), *unit)
        expected, expected_k = arviz_unit(log_weights[own])
        assert k[unit] == expected_k
        np.testing.assert_allclose(smoothed[own] - logsumexp(smoothed[own]), expected, rtol=0, atol=1e-12)
        # What is not in the tail is as it was, constant and all.
        order = np.argsort(log_weights[own])[:-100]
        np.testing.assert_allclose(smoothed[own][order], log_weights[own][order], rtol=0, atol=1e-12)
        assert smoothed[own].max() <= log_weights[own].max() + 1e-12
    assert k[0, 0] < 0.7 < k[0, 2] < k[0, 1]
    assert k[1, 0] < 0


def test_one_unit_without_axes_and_single_precision():
    smoothed, k = pareto_smoothed(NORMAL.astype(np.float32))
    assert smoothed.shape == (1000,)
    assert k.shape == ()
    assert smoothed.dtype == k.dtype == np.float32
    assert k == np.float32(arviz_unit(NORMAL.astype(np.float32).astype(np.float64))[1])


DEAD = np.full(1000, -np.inf)
ROUNDED = SHIFT + np.spacing(np.float32(1e4)) * RNG.integers(-3, 4, 1000)  # large densities that cancel, in 32 bits
FLAT = {
    "equal": np.full(1000, SHIFT),
    "equal, the least that are enough": np.full(5, SHIFT),
    "equal but for rounding": ROUNDED,
    "equal among the live": np.where(RNG.random(1000) < 0.7, -np.inf, SHIFT),
    "discrete latent": np.log([0.5, 1.0, 3.0, 9.0])[RNG.choice(4, p=[0.7, 0.24, 0.05, 0.01], size=1000)],
}
UNKNOWN = {
    "all dead": DEAD,
    "one live": np.r_[DEAD[:-1], 0.0],
    "four live": np.r_[DEAD[:-4], np.zeros(4)],
    "too few for a tail": NORMAL[:8],
    "too few live for a tail": np.r_[DEAD, NORMAL[:10]],
    "one particle": NORMAL[:1],
    "weights beyond the range of numbers": 1000 * RNG.normal(size=1000),
}
INVALID = {
    "NaN": np.r_[np.nan, NORMAL[1:]],
    "NaN among the dead": np.r_[np.nan, DEAD[1:]],
    "infinite": np.r_[np.inf, NORMAL[1:]],
    "infinite, all": -DEAD,
}
CASES = [
    (k, name, w) for k, cases in ((-np.inf, FLAT), (np.inf, UNKNOWN), (np.nan, INVALID)) for name, w in cases.items()
]


@pytest.mark.parametrize(("expected", "log_w"), [pytest.param(k, w, id=name) for k, name, w in CASES])
def test_weights_without_a_tail_to_fit_stay_as_they_are(expected, log_w):
    """Also that no warning of ArviZ's or NumPy's comes through: in tests they are errors."""
    others = np.resize(NORMAL, len(log_w))
    smoothed, k = pareto_smoothed(units_of(others, log_w, others))
    np.testing.assert_array_equal(smoothed[:, 1], log_w)
    np.testing.assert_array_equal(k[1], expected)
    alone, k_alone = pareto_smoothed(others)
    for unit in (0, 2):
        np.testing.assert_array_equal(smoothed[:, unit], alone)
        np.testing.assert_array_equal(k[unit], k_alone)


def test_the_dead_stay_dead_and_the_live_are_smoothed_by_themselves():
    few = np.r_[DEAD, NORMAL[:100]]
    smoothed, k = pareto_smoothed(few)
    expected, expected_k = arviz_unit(NORMAL[:100])
    assert k == expected_k
    assert (smoothed[:1000] == -np.inf).all()
    np.testing.assert_allclose(smoothed[1000:] - logsumexp(smoothed[1000:]), expected, rtol=0, atol=1e-12)


def test_evidence_of_smoothed_weights_is_that_of_the_weights():
    """Log-normal weights, of mean exp(1/2): smoothing shrinks the largest ones a little, by less than their s.e."""
    log_w = RNG.normal(size=(4000, 50)) + SHIFT
    smoothed, k = pareto_smoothed(log_w)
    log_z = logsumexp(smoothed, axis=0) - np.log(4000)
    standard_error = np.sqrt((np.e - 1) / 4000)
    assert (np.abs(log_z - SHIFT - 0.5) < 5 * standard_error).all()
    assert (k < 0.7).all()


def test_no_units_at_all():
    smoothed, k = pareto_smoothed(np.zeros((100, 0, 3)))
    assert smoothed.shape == (100, 0, 3)
    assert k.shape == (0, 3)


def test_without_arviz_the_error_says_what_to_install(monkeypatch):
    for name in ("arviz", "arviz_stats", "arviz_stats.base"):
        monkeypatch.setitem(sys.modules, name, None)
    psis._arviz_psis.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "rws_jax\[posterior\]"'):
        pareto_smoothed(NORMAL)
