"""From weights to which particles to keep: arrays only."""

from functools import partial

import jax
import jax.numpy as jnp

from rws_jax.estimators import weights
from rws_jax.estimators.weights import PerParticle


def systematic_ancestors(rng_key: jax.Array, log_w: PerParticle) -> jax.Array:
    r"""Draw as many particles as there are, by one uniform number: each comes :math:`K \bar w_k` times, up or down.

    Args:
      rng_key: JAX random key.
      log_w: shape ``(particles,)``, of one unit.

    Returns:
      Indices of particles, shape ``(particles,)``, in order; of a dead unit they mean nothing.
    """
    num = len(log_w)
    positions = (jnp.arange(num) + jax.random.uniform(rng_key, dtype=log_w.dtype)) / num
    return at_positions(positions[:, None], log_w[:, None])[:, 0]


def at_positions(positions: jax.Array, log_w: PerParticle) -> jax.Array:
    """The particles at which cumulative weight passes these shares of the total, each of shape ``(n, units)``."""
    w = weights.normalise(log_w)
    cumulative = jnp.cumsum(w, axis=0)
    # Without a loop of its own, the steps of which take most of the time on an accelerator.
    find = partial(jnp.searchsorted, side="right", method="scan_unrolled")
    indices = jax.vmap(find, in_axes=1, out_axes=1)(cumulative, positions * cumulative[-1:])
    last_alive = len(w) - 1 - jnp.argmax(w[::-1] > 0, axis=0)  # where a position is rounded up to the total
    return jnp.minimum(indices, last_alive[None])
