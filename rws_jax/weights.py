"""Log-weights in, numbers out: the importance-weighted bound, normalised weights, effective sample size.

Arrays only. This module knows nothing of NumPyro programs, parameters or training. Everywhere,
particles are axis 0 and the remaining axes are independent units: ``(particles, *units)``.

A *dead* particle has log-weight ``-inf``: it lies outside the support, its weight and every gradient through
it are exactly zero. A unit is dead if all its particles are. ``NaN`` and ``+inf`` are not dead but wrong, and
are passed on, so that whoever takes the step sees them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp


def log_weights(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
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


def alive(log_w: jax.Array) -> jax.Array:
    """Which units have at least one particle of non-zero weight; shape ``units``."""
    return jnp.any(log_w != -jnp.inf, axis=0)


def bound(log_w: jax.Array) -> jax.Array:
    """The importance-weighted bound on log p(x), ``logsumexp_k log_w - log K``, in nats.

    ``-inf``, with zero gradient, for a dead unit (Burda et al. 2016, arXiv 1509.00519).

    Args:
      log_w: shape ``(particles, *units)``.

    Returns:
      Shape ``units``.
    """
    live = alive(log_w)
    total = logsumexp(jnp.where(live, log_w, 0.0), axis=0)
    return jnp.where(live, total, -jnp.inf) - jnp.log(log_w.shape[0])


class Totals(NamedTuple):
    """What the particles of each unit add up to, shapes ``units``. Particles may come in parts; see `combine`.

    Sums are those of ``w / max w``, so that they neither overflow nor vanish.
    """

    log_max: jax.Array  # -inf for a dead unit
    sum: jax.Array
    sum_of_squares: jax.Array
    num_alive: jax.Array
    num_particles: jax.Array  # a scalar

    @property
    def bound(self) -> jax.Array:
        """`bound` of all particles."""
        total = jnp.where(self.log_max == jnp.inf, jnp.inf, self.log_max + jnp.log(self.sum))
        return total - jnp.log(self.num_particles)

    @property
    def effective_sample_size(self) -> jax.Array:
        """Kish's effective sample size of each unit, ``1 / sum_k w_k^2``: 1 to K, and 0 for a dead unit."""
        live = self.num_alive > 0
        return jnp.where(live, self.sum**2 / jnp.where(live, self.sum_of_squares, 1.0), 0.0)


def no_particles(shapes: Totals) -> Totals:
    """What other totals of these shapes are added to."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return zeros._replace(log_max=zeros.log_max - jnp.inf)


def totals(log_w: jax.Array) -> Totals:
    """Of particles with log-weights ``(particles, *units)``."""
    log_max = jnp.max(log_w, axis=0)
    w = jnp.exp(log_w - jnp.where(log_max == -jnp.inf, 0.0, log_max)[None])
    num_alive = jnp.sum(log_w != -jnp.inf, axis=0)
    return Totals(log_max, jnp.sum(w, axis=0), jnp.sum(w**2, axis=0), num_alive, jnp.array(log_w.shape[0]))


def combine(one: Totals, other: Totals) -> Totals:
    """Of two sets of particles together."""
    log_max = jnp.maximum(one.log_max, other.log_max)
    shift = jnp.where(log_max == -jnp.inf, 0.0, log_max)
    scales = jnp.exp(one.log_max - shift), jnp.exp(other.log_max - shift)
    return Totals(
        log_max,
        one.sum * scales[0] + other.sum * scales[1],
        one.sum_of_squares * scales[0] ** 2 + other.sum_of_squares * scales[1] ** 2,
        one.num_alive + other.num_alive,
        one.num_particles + other.num_particles,
    )


def normalise(log_w: jax.Array, totals: Totals) -> jax.Array:
    """Self-normalised weights of particles that are among those of `totals`; all zero for a dead unit.

    Args:
      log_w: shape ``(particles, *units)``.
      totals: of all particles of these units.

    Returns:
      Shape ``(particles, *units)``; those of all particles sum to one for each live unit.
    """
    live = (totals.num_alive > 0)[None]
    w = jnp.exp(log_w - jnp.where(live, totals.log_max[None], 0.0)) / jnp.where(live, totals.sum[None], 1.0)
    return jnp.where(live, w, 0.0)


def log_mixture(log_q: jax.Array, log_u: jax.Array, delta: float) -> jax.Array:
    """Log density of the mixture ``(1 - delta) q + delta u`` in nats, ``-inf`` where both are zero.

    Args:
      log_q: log density of the first component.
      log_u: log density of the second, the same shape.
      delta: share of the second, in (0, 1).
    """
    return jnp.logaddexp(jnp.log1p(-delta) + log_q, jnp.log(delta) + log_u)


def score_baseline(log_w: jax.Array, log_ratio: jax.Array, totals: Totals) -> jax.Array:
    r"""Coefficients :math:`b_k` for which :math:`\sum_k b_k \nabla \log q(z_k)` has expectation zero.

    .. math:: b_k = \frac1K \frac{q(z_k)}{r(z_k)} \, \mathbb 1[\text{some other particle of the unit is alive}]

    With proposals from the guide itself, and all of them alive, that is 1/K. The expectation is zero for each particle,
    since :math:`E_r[(q / r) \nabla \log q] = E_q[\nabla \log q] = 0` and the indicator does not depend on :math:`z_k`.
    Dead units, which train nothing, have no baseline either.

    Args:
      log_w: shape ``(particles, *units)``.
      log_ratio: ``log q - log r`` in nats at the same particles.
      totals: of all K particles of these units.

    Returns:
      Shape ``(particles, *units)``.
    """
    live = log_w != -jnp.inf
    return jnp.where(totals.num_alive[None] - live > 0, jnp.exp(log_ratio), 0.0) / totals.num_particles
