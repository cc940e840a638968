"""From weights to which particles to keep: arrays only."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rws_jax.estimators import weights
from rws_jax.estimators.weights import PerParticle


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
    w = weights.normalise(log_w)
    cumulative = jnp.cumsum(w, axis=0)
    offsets = jax.random.uniform(offset_key, (1, w.shape[1]))
    positions = (jnp.arange(num)[:, None] + offsets) / num * cumulative[-1:]
    find = lambda cumulative, positions: jnp.searchsorted(cumulative, positions, side="right")
    indices = jax.vmap(find, in_axes=1, out_axes=1)(cumulative, positions)
    last_alive = len(w) - 1 - jnp.argmax(w[::-1] > 0, axis=0)  # where a position is rounded up to the total
    return jax.random.permutation(order_key, jnp.minimum(indices, last_alive[None]), axis=0, independent=True)


def multinomial(rng_key: jax.Array, log_w: PerParticle, num: int) -> jax.Array:
    """Draw particles of each unit independently of one another; arguments and result as those of `systematic`."""
    return jax.random.categorical(rng_key, log_w[None], axis=1, shape=(num, log_w.shape[1]))


METHODS: dict[str, Callable[[jax.Array, PerParticle, int], jax.Array]] = {
    "systematic": systematic,
    "multinomial": multinomial,
}
