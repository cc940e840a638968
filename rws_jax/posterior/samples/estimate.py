"""A number that was estimated from particles, with its standard error; and the self-normalised estimator itself."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rws_jax.core.trees import is_known
from rws_jax.estimators import weights
from rws_jax.estimators.weights import OfUnits, PerParticle
from rws_jax.execution.ragged import missing


class Estimate(NamedTuple):
    """An estimate from particles, and its Monte Carlo standard error: trees of arrays of the same shapes.

    The standard error is NaN for a single particle, or for particles that were resampled, from which none can be known.
    """

    value: Any
    standard_error: Any

    @property
    def without_error(self) -> "Estimate":
        """The same, of an unknown standard error."""
        return Estimate(self.value, jax.tree.map(lambda error: jnp.full_like(error, jnp.nan), self.standard_error))

    def __repr__(self) -> str:
        values, errors = jax.tree.leaves(self.value), jax.tree.leaves(self.standard_error)
        if len(values) != 1 or not is_known((values, errors)) or np.size(values[0]) > 10:
            return f"Estimate(value={self.value}, standard_error={self.standard_error})"
        return f"Estimate({_rounded(values[0], errors[0])} ± {_digits(errors[0])})"


@jax.jit
def log_evidence(log_w: PerParticle) -> Estimate:
    r"""The log of the mean weight of each unit, in nats, and its standard error by the delta method.

    .. math:: \log \hat Z = \log \frac1K \sum_k w_k, \qquad
              \mathrm{se}^2 = \frac{K}{K - 1} \sum_k \left(\bar w_k - \frac1K\right)^2

    Args:
      log_w: shape ``(particles, *units)``.

    Returns:
      Shapes ``units``; -inf, and a standard error that is NaN, for a dead unit.
    """
    num, shape = log_w.shape[0], log_w.shape[1:]
    rows = log_w.reshape(num, math.prod(shape)).T
    blocks = jnp.pad(rows, [(0, -len(rows) % _BLOCK), (0, 0)]).reshape(-1, _BLOCK, num)
    return Estimate(*(jnp.ravel(x)[: len(rows)].reshape(shape) for x in lax.map(_of_rows, blocks)))


# XLA rounds in a way that depends on the shape of all. In blocks of one shape the evidence of a unit does not depend,
# to the last bit, on how many others there are.
_BLOCK = 8


def _of_rows(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The log of the mean weight of each row, and its standard error."""
    num = rows.shape[1]
    log_max = jnp.max(rows, axis=1, keepdims=True)
    w = jnp.exp(rows - jnp.where(log_max == -jnp.inf, 0.0, log_max))
    live, total = log_max[:, 0] != -jnp.inf, jnp.sum(w, axis=1)
    values = jnp.where(live, log_max[:, 0] + jnp.log(jnp.where(live, total, 1.0)), -jnp.inf) - jnp.log(num)
    values = jnp.where(jnp.any(jnp.isnan(rows), axis=1), jnp.nan, values)  # a maximum may pass over NaN
    spread = jnp.sum((w / total[:, None] - 1.0 / num) ** 2, axis=1)
    return values, jnp.where(live, jnp.sqrt(spread * _bessel(num)), jnp.nan)


def weighted_mean(w: PerParticle, values: jax.Array) -> Estimate:
    r"""The self-normalised mean of each unit, and its standard error by the delta method.

    .. math:: \hat\mu = \frac{\sum_k w_k f_k}{\sum_k w_k}, \qquad
              \mathrm{se}^2 = \frac{K}{K - 1} \frac{\sum_k w_k^2 (f_k - \hat\mu)^2}{\left(\sum_k w_k\right)^2}

    Args:
      w: weights, not negative, shape that broadcasts to that of `values`.
      values: shape ``(particles, ...)``; where the weight is zero they play no part, were they NaN.

    Returns:
      The shape of `values` without its first axis; NaN where no weight is.
    """
    counts = w != 0  # NaN counts
    values = jnp.where(counts, values.astype(jnp.result_type(values, float)), 0.0)
    total = jnp.sum(w, axis=0)
    mean = jnp.sum(w * values, axis=0) / total
    error = jnp.sqrt(jnp.sum((w * jnp.where(counts, values - mean[None], 0.0)) ** 2, axis=0) * _bessel(len(w)))
    return Estimate(mean, error / total)


def weighted_quantiles(w: PerParticle, values: jax.Array, levels: jax.Array) -> jax.Array:
    r"""The least value whose cumulative weight reaches each level, :math:`\inf\{v : F(v) \ge q\}`, one of the draws.

    Args:
      w: weights, not negative, of the shape of `values`.
      values: shape ``(particles, ...)``.
      levels: in [0, 1], shape ``levels``.

    Returns:
      Shape ``(*levels, ...)``; NaN or the least integer where no weight is.
    """
    values = jnp.where(w == 0, _last(values), values)  # so that what has no weight comes last
    order = jnp.argsort(values, axis=0)
    sorted_values, cumulative = jnp.take_along_axis(values, order, 0), jnp.cumsum(jnp.take_along_axis(w, order, 0), 0)
    total = cumulative[-1]

    def at(level: jax.Array) -> jax.Array:
        first = jnp.argmax(cumulative >= jnp.minimum(level * total, total)[None], axis=0)
        found = jnp.take_along_axis(sorted_values, first[None], 0)[0]
        return jnp.where(total > 0, found, jnp.asarray(missing(values.dtype), values.dtype))

    return jnp.reshape(jax.vmap(at)(jnp.ravel(levels)), (*jnp.shape(levels), *values.shape[1:]))


def effective_sample_size(log_w: PerParticle) -> OfUnits:
    r"""Kish's :math:`1 / \sum_k \bar w_k^2`, from 1 to K; 0 for a dead unit. Shape ``units``."""
    return weights.summarise(log_w).effective_sample_size


def _last(values: jax.Array) -> Any:
    if jnp.issubdtype(values.dtype, jnp.inexact):
        return jnp.inf
    return True if values.dtype == bool else jnp.iinfo(values.dtype).max


def _bessel(num: int) -> float:
    return num / (num - 1) if num > 1 else float("nan")


def _digits(error: Any) -> str:
    """One significant digit of each."""
    return np.array2string(np.asarray(error, float), formatter={"float_kind": lambda x: f"{x:.1g}"})


def _rounded(value: Any, error: Any) -> str:
    """To the digit that the largest of the errors leaves."""
    finite = np.asarray(error)[np.isfinite(error) & (np.asarray(error) > 0)]
    decimals = max(0, -int(np.floor(np.log10(np.max(finite))))) if finite.size else 4
    return np.array2string(np.asarray(value, float), formatter={"float_kind": lambda x: f"{x:.{decimals}f}"})
