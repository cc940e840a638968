"""Wake-theta: minus the importance-weighted bound, which trains the model."""

import jax
import jax.numpy as jnp

from rws_jax.estimators import weights
from rws_jax.estimators.scored import Weighed


def theta_loss(scored: Weighed) -> jax.Array:
    """Wake-theta of all particles: a scalar in nats, summed over live units; infinite if there is none.

    Gradient: reaches theta alone, as proposals are held constant in the log-weights.
    """
    log_w = scored.log_weights
    live = weights.alive(log_w)
    total = jnp.sum(jnp.where(live, weights.bound(log_w), 0.0))
    return -scored.scale * jnp.where(jnp.any(live), total, -jnp.inf)
