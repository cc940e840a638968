r"""VIMCO: the score-function gradient of minus the expected importance-weighted bound, in wake-phi's place.

.. math:: -\sum_k (\hat L - \hat L_{-k} - \bar w_k) \nabla \log q(z_k), \qquad
    \hat L_{-k} = \log \frac1K \Big( \sum_{j \ne k} w_j + \exp \frac{1}{K - 1} \sum_{j \ne k} \log w_j \Big)

Mnih and Rezende 2016, arXiv 1602.06725: the bound of a particle's unit minus a baseline that the other particles alone
make, with the geometric mean of their weights in place of the particle's own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.estimators import weights
from rws_jax.estimators.scored import Scored
from rws_jax.estimators.weights import PerParticle


def phi_loss(scored: Scored) -> jax.Array:
    """Minus the bound, a scalar in nats summed over live units, with VIMCO's gradient.

    Gradient: reaches phi alone, through the density r that particles were drawn from, the guide's or a defensive one.
    Bias: none, as an estimate of the gradient of minus the expected bound of K particles; outcomes in which a unit is
    dead count as zero in that expectation.
    """
    log_w = lax.stop_gradient(scored.log_weights)  # the bound itself trains theta, and phi through log r alone
    live = weights.alive(log_w)
    bound = jnp.where(live, weights.bound(log_w), 0.0)
    signal = jnp.where(live[None], bound[None] - baseline(log_w), 0.0)
    coefficients = signal - weights.normalise(log_w)  # the second term is that of log w = log p - log r
    counts = (coefficients != 0.0) & (scored.log_r != -jnp.inf)
    score = jnp.sum(coefficients * weights.masked(counts, scored.log_r))
    return -scored.scale * (jnp.sum(bound) + weights.gradient_only(score))


def baseline(log_w: PerParticle) -> PerParticle:
    """The bound of each unit, as far as the other particles tell; shape ``(particles, *units)``, in nats.

    The geometric mean of weights is zero if one of them is. Where all others are dead the baseline is zero.
    """
    num, is_dead = log_w.shape[0], log_w == -jnp.inf
    geometric_mean = _of_others(jnp.where(is_dead, 0.0, log_w), lax.cumsum, jnp.add, 0.0) / (num - 1)
    num_others_dead = num - 1 - weights.num_others_alive(log_w)
    own = jnp.where(num_others_dead > 0, -jnp.inf, geometric_mean)
    total = jnp.logaddexp(_of_others(log_w, lax.cumlogsumexp, jnp.logaddexp, -jnp.inf), own) - jnp.log(num)
    return jnp.where(weights.num_others_alive(log_w) > 0, total, 0.0)


def _of_others(x: PerParticle, cumulative: Callable, add: Callable, zero: float) -> PerParticle:
    """Sums without each particle, from both ends: to take it out of the sum of all loses digits where it is large."""
    none = jnp.full_like(x[:1], zero)
    before = jnp.concatenate([none, cumulative(x, axis=0)[:-1]])
    after = jnp.concatenate([cumulative(x, axis=0, reverse=True)[1:], none])
    return add(before, after)
