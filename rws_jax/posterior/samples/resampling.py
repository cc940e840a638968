"""From weights to which particles to keep: arrays only."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from rws_jax.estimators.resampling import at_positions
from rws_jax.estimators.weights import PerParticle


@partial(jax.jit, static_argnums=2)
def systematic(rng_key: jax.Array, log_w: PerParticle, num: int) -> jax.Array:
    r"""Draw particles of each unit by one uniform number: each comes :math:`n \bar w_k` times, rounded up or down.

    Unbiased, and of less variance than independent draws. Samples are in random order, each unit's by itself.

    Args:
      rng_key: JAX random key.
      log_w: shape ``(particles, units)``.
      num: n, how many are drawn of each unit.

    Returns:
      Indices of particles, shape ``(n, units)``; of a dead unit they mean nothing.

    References:
      Douc, Cappé and Moulines, Comparison of Resampling Schemes for Particle Filtering, 2005, arXiv cs/0507025.
    """
    offset_key, order_key = jax.random.split(rng_key)
    offsets = jax.random.uniform(offset_key, (1, log_w.shape[1]))
    order = jnp.argsort(jax.random.bits(order_key, (log_w.shape[1], num)), axis=1).T  # contiguous
    return at_positions((order + offsets) / num, log_w)


@partial(jax.jit, static_argnums=2)
def multinomial(rng_key: jax.Array, log_w: PerParticle, num: int) -> jax.Array:
    """Draw particles of each unit independently of one another; arguments and result as those of `systematic`."""
    return at_positions(jax.random.uniform(rng_key, (num, log_w.shape[1])), log_w)


METHODS: dict[str, Callable[[jax.Array, PerParticle, int], jax.Array]] = {
    "systematic": systematic,
    "multinomial": multinomial,
}
