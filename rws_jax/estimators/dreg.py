r"""Wake-phi by the doubly reparameterised gradient.

.. math:: -\sum_k \bar w_k (1 - \bar w_k) \, \partial_z \log w_k \, \partial_\phi z_k

Tucker et al. 2019, arXiv 1810.04152. The score is in the draw itself, so that particles have to be reparameterised.
"""

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.estimators import score, weights
from rws_jax.estimators.scored import Scored


def phi_loss(scored: Scored) -> jax.Array:
    """The value of wake-phi, with a gradient that comes through the draws alone."""
    assert scored.log_w_of_draw is not None
    w = weights.normalise(lax.stop_gradient(scored.log_weights))  # weights train neither theta nor phi
    slope = w * (1.0 - w)
    along = jnp.sum(slope * weights.masked(slope != 0.0, scored.log_w_of_draw))
    value = lax.stop_gradient(score.plain_phi_loss(scored))  # removes the score, which is in the draws already
    return value - scored.scale * weights.gradient_only(along)
