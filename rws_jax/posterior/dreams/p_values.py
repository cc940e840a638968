"""How low a number is among others that are drawn alike: p-values that are exact, whatever is compared. Arrays only.

Units are the last axes; what real numbers are compared with comes in front, ``(simulations, *units)``.
"""

import math

import numpy as np
from jax.scipy.special import betainc, gammaincc


def lower_p_values(
    real: np.ndarray, simulated: np.ndarray, *, pooled: bool = False, unranked: np.ndarray | None = None
) -> np.ndarray:
    r"""p-values of real numbers against simulated ones, small where the real one is low.

    .. math:: p = \frac{1 + \#\{s : t_s \le t\}}{1 + S}

    If the real and the S simulated numbers of a unit are exchangeable, then :math:`P(p \le a) \le a`, with equality at
    multiples of 1 / (1 + S) where no two are equal (Phipson and Smyth 2010). Simulated NaN counts as the lowest number;
    of real NaN the p-value is NaN, and where `unranked` says so.

    Args:
      real: shape ``units``.
      simulated: shape ``(simulations, *units)``.
      pooled: whether each unit is compared with those of all units that are ranked, S being their number.
      unranked: which units are not ranked, and have NaN; shape ``units``. None for those of `all_dead`.

    Returns:
      Shape ``units``, from 1 / (1 + S) to 1.
    """
    unranked = all_dead(simulated) if unranked is None else unranked
    simulated = np.where(np.isnan(simulated), -np.inf, simulated)
    if pooled:
        simulated = simulated[:, ~unranked]
        num, ranks = simulated.size, np.searchsorted(np.sort(simulated, axis=None), real, side="right")
    else:
        num, ranks = len(simulated), np.sum(simulated <= real, axis=0)
    return np.where(np.isnan(real) | unranked, np.nan, (1 + ranks) / (1 + num))


def all_dead(simulated: np.ndarray) -> np.ndarray:
    """Which units have nothing but minus infinity or NaN, with which there is nothing to compare; shape ``units``."""
    return ~np.any(simulated > -np.inf, axis=0)


def expected_share(level: float, num_simulations: int) -> float:
    """P(p <= level) of such a p-value: the level, rounded down to a multiple of 1 / (1 + S)."""
    return math.floor(level * (1 + num_simulations) + 1e-9) / (1 + num_simulations)


def chance_of_as_many(count: int, num: int, share: float) -> float:
    """P(X >= count) of a binomial X of `num` independent ones, each with probability `share`."""
    if count == 0:
        return 1.0
    return float(betainc(float(count), float(num - count + 1), share)) if share else 0.0


def p_value_of_equal_units(simulated: np.ndarray) -> float:
    """Kruskal and Wallis' test that numbers of all units, shape ``(simulations, units)``, have one distribution."""
    num, num_units = simulated.shape
    _, inverse, counts = np.unique(simulated, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse].reshape(simulated.shape)  # those of equal numbers, averaged
    between, within = num * np.sum((ranks.mean(axis=0) - ranks.mean()) ** 2), np.sum((ranks - ranks.mean()) ** 2)
    if num_units < 2 or not within:
        return 1.0
    statistic = between / within * (simulated.size - 1)
    return float(gammaincc((num_units - 1) / 2, statistic / 2))


def standardised(real: np.ndarray, simulated: np.ndarray) -> np.ndarray:
    """How many standard deviations a real number lies above the mean of the simulated ones of its unit."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (real - simulated.mean(axis=0)) / simulated.std(axis=0)
