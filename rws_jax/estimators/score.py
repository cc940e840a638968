r"""Wake-phi by the score: :math:`-\sum_k \bar w_k \nabla \log q(z_k)`, with or without a control variate."""

import jax
import jax.numpy as jnp

from rws_jax.estimators import weights
from rws_jax.estimators.scored import Scored


def plain_phi_loss(scored: Scored) -> jax.Array:
    """Wake-phi of all particles, a scalar in nats: the cross-entropy from weighted particles to the guide.

    Gradient: reaches phi alone, through log q at fixed draws and fixed weights.
    """
    return -scored.scale * sum(_summed(term.w, term.log_q) for term in scored.terms)


def phi_loss(scored: Scored) -> jax.Array:
    """The same value, and a gradient of less variance and equal expectation: that of the weights minus a baseline."""
    control_variate = sum(_summed(term.baseline, term.log_q) for term in scored.terms)
    return plain_phi_loss(scored) + scored.scale * weights.gradient_only(jnp.asarray(control_variate))


def _summed(coefficients: jax.Array, log_q: jax.Array) -> jax.Array:
    return jnp.sum(coefficients * weights.masked(coefficients != 0.0, log_q))
