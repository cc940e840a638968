r"""Wake-phi by the score: :math:`-\sum_k \bar w_k \nabla \log q(z_k)`, with or without a control variate."""

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.estimators import weights
from rws_jax.estimators.scored import Scored


def plain_phi_loss(scored: Scored) -> jax.Array:
    """Wake-phi of all particles, a scalar in nats: the cross-entropy from weighted particles to the guide.

    Gradient: reaches phi alone, through log q at fixed draws and fixed weights.
    """
    w = weights.normalise(lax.stop_gradient(scored.log_weights))  # weights train neither theta nor phi
    return -scored.scale * jnp.sum(w * weights.masked(w != 0.0, scored.log_q))


def phi_loss(scored: Scored) -> jax.Array:
    """The same value, and a gradient of less variance and equal expectation: that of the weights minus a baseline."""
    log_w = lax.stop_gradient(scored.log_weights)  # the baseline trains neither theta nor the proposals
    log_ratio = lax.stop_gradient(weights.log_weights(scored.log_q, scored.log_r))  # nor does its q / r
    baseline = weights.score_baseline(log_w, log_ratio)
    control_variate = jnp.sum(baseline * weights.masked(baseline != 0.0, scored.log_q))
    return plain_phi_loss(scored) + scored.scale * weights.gradient_only(control_variate)
