"""Proposals for angles: a mixture of von Mises distributions, and of the prior."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, VonMises, constraints

from rws_jax.core.supports import elementwise
from rws_jax.guides.proposals.arrays import cut, flat_events, of_one_rank, softly_bounded, stopped
from rws_jax.guides.proposals.mixture import PriorMixture, chosen, log_weights


class Angles(PriorMixture):
    """A prior on angles, and components that are von Mises at each element.

    Args:
        prior: Distribution of the same batch shape, event shape and support.
        log_weights: Of the prior and of each component, `(*batch, 1 + components)`.
        locations: `(*batch, components, elements)`, in radians.
        concentrations: The same shape; positive.
    """

    pytree_data_fields = ("locations", "concentrations")

    def __init__(self, prior: Distribution, log_weights: jax.Array, locations: jax.Array, concentrations: jax.Array):
        self.locations, self.concentrations = locations, concentrations
        super().__init__(prior, log_weights)

    def log_densities(self, value: jax.Array) -> jax.Array:
        """Log densities in nats."""
        value = flat_events(value, self.event_dim)[..., None, :]
        value, locations, concentrations = of_one_rank(value, self.locations, self.concentrations)
        of_angle = VonMises(locations, concentrations, validate_args=False)
        return jnp.sum(of_angle.log_prob(value), axis=-1)

    def draws(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """One event for each index of a component."""
        locations, concentrations = chosen(self.locations, index, 1), chosen(self.concentrations, index, 1)
        return jnp.asarray(VonMises(locations, concentrations, validate_args=False).sample(key))


@dataclass(frozen=True)
class CircularFamily:
    """Proposals for events of `num_elements` angles."""

    num_elements: int
    num_components: int

    @property
    def size(self) -> int:
        """Number of outputs for one batch element."""
        return 1 + self.num_components + 3 * self.num_components * self.num_elements

    def features(self, fn: Distribution, value: Any) -> jax.Array:
        """Sine and cosine."""
        angles = flat_events(jnp.asarray(value), fn.event_dim)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def prior_features(self, fn: Distribution) -> jax.Array:
        """Sine and cosine of the prior's direction, and its log concentration; zeros where it has none."""
        prior = stopped(fn)
        location, log_concentration = _direction(prior)
        return jnp.concatenate([jnp.sin(location), jnp.cos(location), log_concentration], axis=-1)

    def proposal(self, fn: Distribution, outputs: jax.Array) -> Angles:
        """The prior and von Mises components, moved by `outputs` of shape `(*batch, size)`."""
        prior, of_component = stopped(fn), (self.num_components, self.num_elements)
        shapes = [(1 + self.num_components,), of_component, of_component, of_component]
        weights, east, north, log_concentrations = cut(outputs, shapes)
        location, log_concentration = (x[..., None, :] for x in _direction(prior))
        # The direction is that of a vector, so that it can be turned all the way round.
        places = np.linspace(-0.5, 0.5, 2 * self.num_components + 1)[1::2, None] * math.pi
        east, start = of_one_rank(east, jnp.asarray(np.broadcast_to(places, of_component), east.dtype))
        turned = jnp.arctan2(north + jnp.sin(start), east + jnp.cos(start))
        concentrations = jnp.exp(softly_bounded(log_concentrations, 6.0) + jnp.clip(log_concentration, -1.0, 6.0))
        return Angles(prior, log_weights(weights), location + turned, concentrations)


def circular_family(fn: Distribution, num_components: int) -> CircularFamily | None:
    """Proposals for a distribution of angles; None if it is not one."""
    num_elements = math.prod(fn.event_shape)
    is_one = elementwise(fn) is constraints.circular and num_elements > 0
    return CircularFamily(num_elements, num_components) if is_one else None


def _direction(fn: Any) -> tuple[jax.Array, jax.Array]:
    """Mean direction and log concentration of each element, `(*batch, elements)`; zeros where they are not known."""
    base = fn
    while not isinstance(base, VonMises) and hasattr(base, "base_dist"):
        base = base.base_dist
    known = isinstance(base, VonMises)
    location = jnp.asarray(base.loc if known else 0.0, float)
    log_concentration = jnp.log(jnp.clip(jnp.asarray(base.concentration if known else 1.0, float), 1e-6, 1e6))
    wide = lambda x: flat_events(jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, fn.shape())), fn.event_dim)
    return wide(location), wide(log_concentration)
