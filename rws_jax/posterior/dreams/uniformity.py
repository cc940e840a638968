r"""Whether ranks are uniform: an exact simultaneous band for their empirical distribution function, and its p-value.

Arrays only, on the host. Ranks are integers from 0 to L. Under the null hypothesis S of them are independent and
uniform, so the number of those below i, :math:`R_i`, is binomial with S trials of probability :math:`i / (L + 1)`, and
the numbers at increasing points are a Markov chain,

.. math:: R_j - R_i \mid R_i \sim \text{Binomial}\Big(S - R_i, \frac{j - i}{L + 1 - i}\Big).

The statistic is the smallest two-sided tail probability of all points (Säilynoja, Bürkner and Vehtari 2022),

.. math:: \gamma = \min_i \, 2 \min\big(P(R_i \le r_i), P(R_i \ge r_i)\big),

and its distribution follows exactly from the recursion along the chain. Points are at ranks, so that there is no
approximation for discrete uniform ranks either.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln, ndtr, ndtri

_MAX_POINTS = 100
_MANY = 500  # simulations that find a guide of half the width, with a p-value far below 1e-20
_SMALLEST = 1e-12  # tail probabilities below are bounded, not computed
_ROUNDING = 1.0 + 1e-9  # tail probabilities that are equal but for rounding
_AT_ONCE = 256  # thresholds that the recursion takes together


class EcdfBand(NamedTuple):
    """A simultaneous band for the share of ranks that lie below each point; arrays of one length."""

    points: np.ndarray  # in (0, 1): i / (L + 1), which is also the share that is expected
    low: np.ndarray  # the smallest share within the band
    high: np.ndarray  # the largest


def evaluation_points(num_samples: int) -> np.ndarray:
    """The ranks i at which the share of ranks below i is tested: 1 to L, or 99 of these, evenly spread."""
    if num_samples < _MAX_POINTS:
        return np.arange(1, num_samples + 1)
    return np.unique(np.round(np.arange(1, _MAX_POINTS) * (num_samples + 1) / _MAX_POINTS).astype(int))


def ecdf(ranks: np.ndarray, num_samples: int) -> np.ndarray:
    """The share of ranks below each of the `evaluation_points`.

    Args:
      ranks: integers from 0 to `num_samples`, shape ``(simulations, *shape)``.
      num_samples: L.

    Returns:
      Shape ``(points, *shape)``.
    """
    return _num_below(ranks, num_samples) / len(ranks)


def p_values(ranks: np.ndarray, num_samples: int) -> np.ndarray:
    """The probability that uniform ranks are as far from uniform as these or further.

    It is exact: for each number a, a p-value of at most a has a probability of at most a, and for one that can be
    attained of exactly a. Below about 1e-10 it is an upper bound.

    Args:
      ranks: integers from 0 to `num_samples`, shape ``(simulations, *shape)``; independent along the first axis.
      num_samples: L, the number of draws that each rank is among.

    Returns:
      Shape ``shape``.
    """
    num_below = _num_below(np.asarray(ranks), num_samples)
    null = _null(len(ranks), num_samples)
    tails = np.take_along_axis(null.tails, num_below.reshape(len(null.points), -1), axis=1)
    different, which = np.unique(tails.min(axis=0), return_inverse=True)
    return null.p_values(different)[which].reshape(num_below.shape[1:])


def band(num_simulations: int, num_samples: int, level: float = 0.95) -> EcdfBand:
    """The band that the empirical distribution function of uniform ranks stays within, with probability `level`.

    That probability is the smallest that a band of this kind has which is not below `level`: the band is left where
    `p_values` is at most ``1 - level``, and only there.

    Args:
      num_simulations: how many ranks there are.
      num_samples: L.
      level: in (0, 1).
    """
    null = _null(num_simulations, num_samples)
    inside = null.tails > _threshold(num_simulations, num_samples, 1.0 - level)
    low, high = inside.argmax(axis=1), num_simulations - inside[:, ::-1].argmax(axis=1)
    return EcdfBand(null.points / (num_samples + 1), low / num_simulations, high / num_simulations)


def overall_p_value(all_p_values: np.ndarray) -> float:
    """One p-value for many, however they depend on one another: the smallest times their number (Bonferroni)."""
    return float(min(1.0, np.min(all_p_values) * np.size(all_p_values)))


def p_value_of_half_width(num_simulations: int, num_samples: int) -> float:
    """The p-value of ranks that a normal guide of half the posterior's width has, evenly spread: what is found at all.

    Args:
      num_simulations: how many ranks there are.
      num_samples: L.
    """
    if num_simulations >= _MANY:
        return 0.0
    dreams = ndtri((np.arange(num_simulations) + 0.5) / num_simulations)
    ranks = np.floor(ndtr(2.0 * dreams) * (num_samples + 1)).astype(int)
    return float(p_values(np.clip(ranks, 0, num_samples), num_samples))


class _Null:
    """Distribution of the statistic for uniform ranks."""

    def __init__(self, num_simulations: int, num_samples: int) -> None:
        self.size, self.points = num_simulations, evaluation_points(num_samples)
        self.probabilities = self.points / (num_samples + 1)
        self._log_factorials = gammaln(np.arange(num_simulations + 1) + 1.0)
        counts = np.arange(num_simulations + 1)
        pmf = self._binomial(num_simulations, counts[None], self.probabilities[:, None])
        below, above = np.cumsum(pmf, axis=1), np.cumsum(pmf[:, ::-1], axis=1)[:, ::-1]
        # P(R <= r) and P(R >= r), the smaller one twice: at the median both may exceed a half.
        self.tails = np.minimum(1.0, 2.0 * np.minimum(below, above))  # (points, 1 + simulations)

    def p_values(self, statistics: np.ndarray) -> np.ndarray:
        """The probability that the statistic is at most so small, each of an array of one dim."""
        parts = [statistics[i : i + _AT_ONCE] for i in range(0, len(statistics), _AT_ONCE)]
        exact = [1.0 - self._stays_above(np.maximum(part, _SMALLEST)) for part in parts]
        bound = np.minimum(1.0, len(self.points) * statistics)
        result = np.concatenate(exact) if exact else np.zeros(0)
        # One of the two tails at one of the points has half of the statistic for its probability.
        return np.where(statistics < _SMALLEST, bound, np.clip(result, statistics / 2, bound))

    def threshold(self, size: float) -> float:
        """The largest value that the statistic is at most with a probability of at most `size`; 0 if there is none."""
        surely = max(_SMALLEST, size / len(self.points))  # small enough, as the sum over points bounds the probability
        values = np.unique(self.tails[self.tails <= size * _ROUNDING])
        low, high = int(np.searchsorted(values, surely, side="right")) - 1, len(values)  # small enough, and too large
        while high - low > 1:
            tried = np.unique(np.linspace(low, high, 34).astype(int)[1:-1])
            tried = tried[(tried > low) & (tried < high)]
            fits = self.p_values(values[tried]) <= size
            low = int(tried[fits].max(initial=low))
            high = int(tried[~fits].min(initial=high))
        return 0.0 if low < 0 else float(values[low] * _ROUNDING)

    def _stays_above(self, statistics: np.ndarray) -> np.ndarray:
        """The probability that all tails exceed each of these numbers, by recursion over the points."""
        thresholds = statistics[:, None] * _ROUNDING
        widest = self.tails > thresholds.min()
        mass, counts, last = np.ones((len(statistics), 1)), np.zeros(1, int), 0.0
        for tails, inside, probability in zip(self.tails, widest, self.probabilities, strict=True):
            following = np.flatnonzero(inside)
            step = (probability - last) / (1.0 - last)
            moves = following[None] - counts[:, None]
            transition = self._binomial(self.size - counts[:, None], moves, step)
            mass = np.where(tails[following][None] > thresholds, mass @ transition, 0.0)
            counts, last = following, probability
        return mass.sum(axis=1)

    def _binomial(self, trials: np.ndarray | int, successes: np.ndarray, probability: np.ndarray | float) -> np.ndarray:
        possible = (successes >= 0) & (successes <= trials)
        successes = np.where(possible, successes, 0)
        failures, log_factorials = trials - successes, self._log_factorials
        log_pmf = log_factorials[trials] - log_factorials[successes] - log_factorials[failures]
        log_pmf = log_pmf + successes * np.log(probability) + failures * np.log1p(-probability)
        return np.where(possible, np.exp(log_pmf), 0.0)


@lru_cache(maxsize=16)
def _null(num_simulations: int, num_samples: int) -> _Null:
    return _Null(num_simulations, num_samples)


@lru_cache(maxsize=64)
def _threshold(num_simulations: int, num_samples: int, size: float) -> float:
    return _null(num_simulations, num_samples).threshold(size)


def _num_below(ranks: np.ndarray, num_samples: int) -> np.ndarray:
    points = evaluation_points(num_samples)
    columns = np.sort(np.asarray(ranks).reshape(len(ranks), -1), axis=0).T
    num_below = np.zeros((len(points), len(columns)), int)
    for number, column in enumerate(columns):
        num_below[:, number] = np.searchsorted(column, points, side="left")
    return num_below.reshape(len(points), *np.shape(ranks)[1:])
