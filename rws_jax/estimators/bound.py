"""Wake-theta: minus the importance-weighted bound, which trains the model."""

import jax
import jax.numpy as jnp

from rws_jax.estimators import weights
from rws_jax.estimators.scored import Weighed


def theta_loss(scored: Weighed) -> jax.Array:
    """Wake-theta of all particles: a scalar in nats, summed over live units; infinite if there is none.

    Gradient: reaches theta alone, as proposals are held constant in the log-weights.
    """
    return of_all_units(of_live_units(scored), jnp.any(weights.alive(scored.log_weights)))


def of_all_units(total: jax.Array, has_live: jax.Array) -> jax.Array:
    """The same of a sum over live units, if there are any."""
    return jnp.where(has_live, total, jnp.inf)


def of_live_units(scored: Weighed) -> jax.Array:
    """Wake-theta, but zero where there is no live unit: a sum, to which other data add theirs."""
    log_w = scored.log_weights
    return -scored.scale * jnp.sum(jnp.where(weights.alive(log_w), weights.bound(log_w), 0.0))
