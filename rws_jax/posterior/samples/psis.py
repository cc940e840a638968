"""Pareto-smoothed importance sampling of arrays of log-weights, by ArviZ; knows of no program."""

import math
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module

import numpy as np

Psis = Callable[[np.ndarray], tuple[np.ndarray, float]]

SMALLEST_TAIL = 5  # ArviZ fits no tail of fewer weights
ROUNDING = 0.01  # nats; log-weights that all lie within this are equal but for the rounding of densities


def pareto_smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Smooth the largest importance weights of each unit, and tell from their tail how far to trust the rest.

    The tail, the largest :math:`M = \min(K/5, 3\sqrt{K})` weights, is replaced by quantiles of the generalized Pareto
    distribution fitted to it, of shape :math:`\hat k`. Where :math:`\hat k < 0.7`, estimates of these weights can be
    trusted; above, their error falls too slowly with K to be seen from the weights themselves.

    The fit is ArviZ's (`arviz_stats` where it is installed, otherwise `arviz` before 1.0). Where ArviZ has no answer,
    or none that means anything, weights stay as they are, and :math:`\hat k` is

    - ``-inf`` where there is no tail: five particles or more share the largest weight, as with discrete latents, or all
      weights are equal up to rounding, as with the exact posterior for a guide;
    - ``inf`` where the tail cannot be fitted: it has fewer than five weights (which takes some 25 live particles), or
      many that are tied. Nothing is known then, and the weights are not to be trusted;
    - ``nan`` where a log-weight is NaN or ``+inf``.

    A particle of weight zero keeps weight zero. Where so many are dead that the tail has some, the live ones are
    smoothed by themselves.

    Args:
      log_weights: ``(particles, *units)``, in nats, on the host; each unit has weights of its own.

    Returns:
      Smoothed log-weights ``(particles, *units)``, not normalised: a weight outside of the tail is what it was, so that
      the mean weight still estimates the evidence; and :math:`\hat k` ``(*units,)``. Both have the dtype of the input.

    Raises:
      ImportError: ArviZ is not installed.

    References:
      Vehtari, Simpson, Gelman, Yao and Gabry 2024, Pareto smoothed importance sampling, JMLR 25(72), algorithm 1;
      arXiv 1507.02646.
    """
    psis = _arviz_psis()
    smoothed = np.array(log_weights, order="C")
    units = smoothed.reshape(len(smoothed), -1)  # a view, into which units are written
    k = np.empty(units.shape[1], smoothed.dtype)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of fits that fail, which the value of k says
        for unit in range(units.shape[1]):
            units[:, unit], k[unit] = _smoothed_unit(units[:, unit].astype(np.float64), psis)
    return smoothed, k.reshape(smoothed.shape[1:])


def is_available() -> bool:
    """Whether ArviZ is installed."""
    try:
        _arviz_psis()
    except ImportError:
        return False
    return True


def _smoothed_unit(log_w: np.ndarray, psis: Psis) -> tuple[np.ndarray, float]:
    live = log_w > -np.inf  # NaN is not
    if np.isnan(log_w).any() or np.isposinf(log_w).any():
        return log_w, math.nan
    if live.sum() < SMALLEST_TAIL:
        return log_w, math.inf
    if not live[_tail(log_w)].all():
        smoothed = log_w.copy()
        smoothed[live], k = _smoothed_unit(log_w[live], psis)
        return smoothed, k
    if _is_flat(log_w):
        return log_w, -math.inf
    try:
        smoothed, k = psis(log_w)
    except (ValueError, IndexError):  # ArviZ refuses tails that are too short, or have no spread
        return log_w, math.inf
    smallest = np.where(live, log_w, np.inf).argmin()  # never in the tail, so changed by normalisation alone
    smoothed = np.where(live, smoothed + (log_w[smallest] - smoothed[smallest]), -np.inf)
    if not np.isfinite(k) or np.isnan(smoothed).any():  # too many ties for a fit
        return log_w, math.inf
    return smoothed, float(k)


def _is_flat(log_w: np.ndarray) -> bool:
    """No weight stands out from those beside it, so that there is nothing to fit and nothing to smooth."""
    tail, live = log_w[_tail(log_w)], log_w[log_w > -np.inf]
    return bool((tail == tail[-1]).sum() >= SMALLEST_TAIL or live.max() - live.min() <= ROUNDING)


def _tail(log_w: np.ndarray) -> np.ndarray:
    """Places of the largest weights and of the next one, where the tail is cut off; the largest is last."""
    num = math.ceil(min(len(log_w) / 5, 3 * math.sqrt(len(log_w))))
    return np.argsort(log_w)[-max(num + 1, SMALLEST_TAIL) :]


@cache
def _arviz_psis() -> Psis:
    """ArviZ's function of the log-weights of one unit, by the interface from 1.0 on, or by that of before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces the next version when it is imported
        try:
            array_stats = import_module("arviz_stats.base").array_stats
        except ImportError:
            pass
        else:
            return lambda log_w: array_stats.psislw(
                -log_w
            )  # takes log-likelihoods, whose inverse weighs what is left out
        try:
            return import_module("arviz").psislw
        except ImportError as error:
            message = 'Pareto-smoothed weights and k-hat need ArviZ: pip install "rws_jax[posterior]"'
            raise ImportError(message, name="arviz") from error
