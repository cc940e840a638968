r"""Wake-phi by the score: :math:`-\sum_k \bar w_k \nabla \log q(z_k)`, with or without a control variate."""

from collections.abc import Iterable
from functools import reduce

import jax
import jax.numpy as jnp

from rws_jax.estimators import weights
from rws_jax.estimators.scored import Weighed


def plain_phi_loss(scored: Weighed) -> jax.Array:
    """Wake-phi of all particles, a scalar in nats: the cross-entropy from weighted particles to the guide.

    Gradient: reaches phi alone, through log q at fixed draws and fixed weights.
    """
    return -scored.scale * _summed((term.w, term.log_q) for term in scored.terms)


def phi_loss(scored: Weighed) -> jax.Array:
    """The same value, and a gradient of less variance and equal expectation: that of the weights minus a baseline."""
    control_variate = _summed((term.baseline, term.log_q) for term in scored.terms)
    return plain_phi_loss(scored) + scored.scale * weights.gradient_only(control_variate)


def _summed(pairs: Iterable[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Sum of coefficients times log q, over all terms."""
    sums = [jnp.sum(by * weights.masked(by != 0.0, log_q)) for by, log_q in pairs]
    return reduce(jnp.add, sums)
