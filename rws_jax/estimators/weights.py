"""Log-weights in, numbers out: the importance-weighted bound, normalised weights, effective sample size.

Arrays only. This module knows nothing of NumPyro programs, parameters or training. Everywhere,
particles are axis 0 and the remaining axes are independent units: ``(particles, *units)``.

A *dead* particle has log-weight ``-inf``: it lies outside the support, its weight and every gradient through
it are exactly zero. A unit is dead if all its particles are. ``NaN`` and ``+inf`` are not dead but wrong, and
are passed on, so that whoever takes the step sees them.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

PerParticle = Annotated[jax.Array, "(particles, *units)"]
OfUnits = Annotated[jax.Array, "units"]


def log_weights(log_p: PerParticle, log_q: PerParticle) -> PerParticle:
    """Log importance weights ``log_p - log_q`` in nats, ``-inf`` where either density is zero.

    Args:
      log_p: log p(z, x), shape ``(particles, *units)``.
      log_q: log q(z | x), the same shape.

    Returns:
      Shape ``(particles, *units)``.
    """
    dead = (log_p == -jnp.inf) | (log_q == -jnp.inf)
    # Double-where: no -inf takes part in the subtraction, so no NaN can come back through its gradient.
    log_p = jnp.where(dead, 0.0, log_p)
    log_q = jnp.where(dead, 0.0, log_q)
    return jnp.where(dead, -jnp.inf, log_p - log_q)


def alive(log_w: PerParticle, axis: int = 0) -> OfUnits:
    """Which units have at least one particle of non-zero weight; shape ``units``."""
    # No maximum would do: XLA's on CPU may lose a NaN, which is not dead but wrong.
    return _total(log_w, axis) != 0.0


def bound(log_w: PerParticle, axis: int = 0) -> OfUnits:
    """The importance-weighted bound on log p(x), ``logsumexp_k log_w - log K``, in nats.

    ``-inf``, with zero gradient, for a dead unit (Burda et al. 2016, arXiv 1509.00519).

    Args:
      log_w: shape ``(particles, *units)``.
      axis: that of particles, if it is another one.

    Returns:
      Shape ``units``.
    """
    live, log_max = alive(log_w, axis), lax.stop_gradient(_log_max(log_w, axis))  # whose gradients cancel
    log_total = jnp.log(jnp.where(live, _total(log_w, axis), 1.0)) + log_max
    return jnp.where(live, log_total, -jnp.inf) - jnp.log(log_w.shape[axis])


class WeightSummary(NamedTuple):
    """How the weights of each unit are spread; arrays of shape ``units``."""

    effective_sample_size: OfUnits  # Kish's, 1 / sum_k w_k^2: 1 to K, and 0 for a dead unit
    num_alive: OfUnits
    num_dead: OfUnits


def summarise(log_w: PerParticle) -> WeightSummary:
    """Summarise log-weights of shape ``(particles, *units)``."""
    w = _relative(log_w)
    num_alive = jnp.sum(log_w != -jnp.inf, axis=0)
    live = num_alive > 0
    sum_of_squares = jnp.where(live, jnp.sum(w**2, axis=0), 1.0)
    ess = jnp.where(live, jnp.sum(w, axis=0) ** 2 / sum_of_squares, 0.0)
    return WeightSummary(ess, num_alive, log_w.shape[0] - num_alive)


def normalise(log_w: PerParticle, axis: int = 0) -> PerParticle:
    """Self-normalised weights, which sum to one over the particles of each live unit; all zero for a dead unit.

    Args:
      log_w: shape ``(particles, *units)``.
      axis: that of particles, if it is another one.

    Returns:
      Shape ``(particles, *units)``.
    """
    live, total = (jnp.expand_dims(x, axis) for x in (alive(log_w, axis), _total(log_w, axis)))
    return jnp.where(live, _relative(log_w, axis) / jnp.where(live, total, 1.0), 0.0)


def log_mixture(log_q: PerParticle, log_u: PerParticle, delta: float) -> PerParticle:
    """Log density of the mixture ``(1 - delta) q + delta u`` in nats, ``-inf`` where both are zero.

    Args:
      log_q: log density of the first component.
      log_u: log density of the second, the same shape.
      delta: share of the second, in (0, 1).
    """
    return jnp.logaddexp(jnp.log1p(-delta) + log_q, jnp.log(delta) + log_u)


def num_others_alive(log_w: PerParticle, axis: int = 0) -> PerParticle:
    """How many of the other particles of its unit are alive, for each particle; shape ``(particles, *units)``.

    It does not depend on the particle itself, as the coefficient of a baseline must not.
    """
    live = log_w != -jnp.inf
    live = live.astype(int)
    return jnp.expand_dims(jnp.sum(live, axis=axis), axis) - live


def score_baseline(log_w: PerParticle, log_ratio: PerParticle) -> PerParticle:
    r"""Coefficients :math:`b_k` for which :math:`\sum_k b_k \nabla \log q(z_k)` has expectation zero.

    .. math:: b_k = \frac1K \frac{q(z_k)}{r(z_k)} \, \mathbb 1[\text{some other particle of the unit is alive}]

    With proposals from the guide itself, and all of them alive, that is 1/K. The expectation is zero for each particle,
    since :math:`E_r[(q / r) \nabla \log q] = E_q[\nabla \log q] = 0` and the indicator does not depend on :math:`z_k`.
    Dead units, which train nothing, have no baseline either.

    Args:
      log_w: shape ``(particles, *units)``.
      log_ratio: ``log q - log r`` in nats at the same particles.

    Returns:
      Shape ``(particles, *units)``.
    """
    return jnp.where(num_others_alive(log_w) > 0, jnp.exp(log_ratio), 0.0) / log_w.shape[0]


def masked(counts: jax.Array, x: jax.Array) -> jax.Array:
    """`x` where it counts, else zero: what has no weight may be infinite, and 0 * inf is NaN."""
    return jnp.where(counts, x, 0.0)


def gradient_only(x: jax.Array) -> jax.Array:
    """Zero, with the gradient of `x`."""
    return x - lax.stop_gradient(x)  # takes away the value and leaves the gradient


def _relative(log_w: PerParticle, axis: int = 0) -> PerParticle:
    """``w / max w`` over the particles of each unit, which neither overflows nor vanishes where weights are finite."""
    log_max = lax.stop_gradient(_log_max(log_w, axis))  # what is made of these does not depend on their scale
    return jnp.exp(log_w - jnp.expand_dims(log_max, axis))


def _total(log_w: PerParticle, axis: int = 0) -> OfUnits:
    """The sum of `_relative`: zero for a dead unit, at least one for a live one, NaN if any is; shared by all above."""
    return jnp.sum(_relative(log_w, axis), axis=axis)


def _log_max(log_w: PerParticle, axis: int) -> OfUnits:
    """The largest of each unit, or zero where that is not finite."""
    log_max = jnp.max(log_w, axis=axis)
    return jnp.where(jnp.isfinite(log_max), log_max, 0.0)
