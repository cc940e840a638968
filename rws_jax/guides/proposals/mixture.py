r"""Mixtures of a prior with components that a network moves.

.. math:: q(z) = w_0 \, p(z) + \sum_k w_k \, q_k(z)

The prior has three quarters of the mass when all outputs are zero, and always some: whatever it can draw has a density.
"""

import math
from functools import partial
from statistics import NormalDist
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from numpyro.distributions import Distribution, constraints

from rws_jax.core.draws import may_round, moved_inside
from rws_jax.guides.proposals.arrays import of_one_rank

_PRIOR_SHARE = 3.0  # parts of the prior, for one part of all components together


class PriorMixture(Distribution):
    """A prior and components, of which subclasses know densities and draws.

    Args:
        prior: Distribution of the same batch shape, event shape and support.
        log_weights: Of the prior and of each component, `(*batch, 1 + components)`; they need not be normalised.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_weights": constraints.real_vector}
    pytree_data_fields = ("prior", "log_weights")

    def __init__(self, prior: Distribution, log_weights: jax.Array):
        self.prior, self.log_weights = prior, log_weights
        super().__init__(prior.batch_shape, prior.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The prior's own."""
        return self.prior.support

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Log density of each event, in nats."""
        value = jnp.asarray(value)
        return _mixed(self.log_weights, jnp.asarray(self.prior.log_prob(value)), self.log_densities(value))

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw from one component, or from the prior; rounded to the inside of the support where it is open."""
        assert key is not None
        shape = (*sample_shape, *self.batch_shape)
        prior_key, component_key, is_prior, index = _picked(key, self.log_weights, shape)
        drawn = self.draws(component_key, index).reshape(shape + self.event_shape)
        prior = jnp.asarray(self.prior.sample(prior_key, sample_shape))
        value = _either(is_prior, prior, drawn)
        return moved_inside(self.prior, value) if may_round(self.prior) else value

    def log_densities(self, value: jax.Array) -> jax.Array:
        """Log density of each event under each component, of shape `(*batch, components)`."""
        raise NotImplementedError

    def draws(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """One event for each index of a component."""
        raise NotImplementedError


# Programs that branch run un-jitted: these cost one call each then, and not one for each operation.
@partial(jax.jit, inline=True)
def _mixed(log_weights: jax.Array, prior: jax.Array, components: jax.Array) -> jax.Array:
    """The log density of a mixture, of those of the prior and of its components."""
    prior, components = of_one_rank(prior[..., None], components)
    shape = jnp.broadcast_shapes(prior.shape[:-1], components.shape[:-1])
    prior, components = (jnp.broadcast_to(part, shape + part.shape[-1:]) for part in (prior, components))
    log_weights, log_densities = of_one_rank(
        jax.nn.log_softmax(log_weights), jnp.concatenate([prior, components], axis=-1)
    )
    return logsumexp(log_weights + log_densities, axis=-1)


@partial(jax.jit, static_argnums=2, inline=True)
def _picked(
    key: jax.Array, log_weights: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Keys for the prior and for components; which draws are the prior's, and from which component others come."""
    prior_key, index_key, component_key = jax.random.split(key, 3)
    noise = jax.random.gumbel(index_key, (*shape, log_weights.shape[-1]))
    noise, log_weights = of_one_rank(noise, log_weights)
    index = jnp.argmax(noise + log_weights, axis=-1)
    return prior_key, component_key, index == 0, jnp.maximum(index - 1, 0)


@partial(jax.jit, inline=True)
def _either(is_prior: jax.Array, prior: jax.Array, drawn: jax.Array) -> jax.Array:
    is_prior = is_prior.reshape(is_prior.shape + (1,) * (prior.ndim - is_prior.ndim))
    return jnp.where(is_prior, prior, drawn.astype(prior.dtype))


def log_weights(outputs: jax.Array) -> jax.Array:
    """Weights of the prior and of components, `(*batch, 1 + components)`, from as many outputs."""
    constants = np.zeros(outputs.shape[-1])
    constants[0] = np.log(_PRIOR_SHARE * (outputs.shape[-1] - 1))
    return outputs + jnp.asarray(constants, outputs.dtype).reshape((1,) * (outputs.ndim - 1) + (-1,))


def spread(num_components: int, num_elements: int) -> tuple[np.ndarray, float]:
    """Where components start, `(components, elements)`, and their scale: together they have about variance one.

    Each element has the quantiles of a normal distribution in an order of its own, so that no two components are alike
    and that they lie on no line.
    """
    quantiles = np.array([NormalDist().inv_cdf((k + 0.5) / num_components) for k in range(num_components)])
    orders = [np.random.default_rng(element).permutation(num_components) for element in range(1, num_elements)]
    places = np.stack([quantiles, *(quantiles[order] for order in orders)], axis=-1) / math.sqrt(num_elements)
    return places, math.sqrt(1.0 - np.mean(quantiles**2) / num_elements)


def chosen(parameters: jax.Array, index: jax.Array, num_trailing: int) -> jax.Array:
    """Parameters `(*batch, components, *trailing)` of the component that each index says."""
    index = index.reshape(index.shape + (1,) * (num_trailing + 1))
    index, parameters = of_one_rank(index, parameters)
    axis = parameters.ndim - num_trailing - 1
    shape = jnp.broadcast_shapes(index.shape[:axis], parameters.shape[:axis])
    parameters = jnp.broadcast_to(parameters, shape + parameters.shape[axis:])
    index = jnp.broadcast_to(index, shape + index.shape[axis:])
    return jnp.take_along_axis(parameters, index, axis=axis).squeeze(axis)
