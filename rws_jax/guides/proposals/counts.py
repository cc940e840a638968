r"""Proposals for counts and other integers: a mixture of rounded logistic variables, and of the prior.

.. math:: z = \mathrm{clip}(\mathrm{round}(m + s \, \epsilon), \mathrm{low}, \mathrm{high})

Probabilities are differences of the logistic distribution function, whose tails belong to the ends of the support.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution

from rws_jax.core.supports import elementwise, range_of
from rws_jax.guides.proposals.arrays import cut, flat_events, of_one_rank, softly_bounded, stopped
from rws_jax.guides.proposals.mixture import PriorMixture, chosen, log_weights, spread
from rws_jax.guides.proposals.values import is_categorical

_LARGEST = 2**30  # Draws of components are not larger, as integers of 32 bits hold them.
_LOGISTIC = math.sqrt(3.0) / math.pi  # the scale of a logistic variable of variance one


class RoundedLogistics(PriorMixture):
    """A prior on integers, and components that are rounded.

    Args:
        prior: Distribution of the same batch shape, event shape and support.
        log_weights: Of the prior and of each component, `(*batch, 1 + components)`.
        locations: `(*batch, components, elements)`.
        scales: The same shape; positive.
    """

    pytree_data_fields = ("locations", "scales")

    def __init__(self, prior: Distribution, log_weights: jax.Array, locations: jax.Array, scales: jax.Array):
        self.locations, self.scales = locations, scales
        super().__init__(prior, log_weights)

    def log_densities(self, value: jax.Array) -> jax.Array:
        """Log-probabilities in nats; minus infinity for what components do not draw."""
        value = flat_events(value.astype(self.locations.dtype), self.event_dim)[..., None, :]
        value, low, high, locations, scales = of_one_rank(value, *self._ends(), self.locations, self.scales)
        below, above = (value - 0.5 - locations) / scales, (value + 0.5 - locations) / scales
        # log(F(above) - F(below)), in which each factor is exact wherever it is small
        within = jnp.log(-jnp.expm1(-1.0 / scales))
        terms = jnp.where(value >= high, 0.0, jax.nn.log_sigmoid(above))
        terms = terms + jnp.where(value <= low, 0.0, jax.nn.log_sigmoid(-below))
        terms = terms + jnp.where((value >= high) | (value <= low), 0.0, within)
        inside = ((value >= low) & (value <= high)).all(axis=-1)
        return jnp.where(inside, jnp.sum(terms, axis=-1), -jnp.inf)

    def draws(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """One event for each index of a component."""
        locations, scales = chosen(self.locations, index, 1), chosen(self.scales, index, 1)
        noise = jax.random.logistic(key, (*index.shape, locations.shape[-1]))
        noise, locations, scales = of_one_rank(noise, locations, scales)
        drawn = jnp.round(locations + scales * noise)
        drawn, low, high = of_one_rank(drawn, *(end[..., 0, :] for end in self._ends()))
        return jnp.clip(drawn, low, high)

    def _ends(self) -> list[jax.Array]:
        """Least and greatest number that components draw, `(*batch, 1, elements)`."""
        numbers = range_of(elementwise(self.prior))
        assert numbers is not None
        ends = [jnp.clip(jnp.asarray(end, float), -_LARGEST, _LARGEST) for end in (numbers.low, numbers.high)]
        shape = self.prior.shape()
        wide = [jnp.broadcast_to(end, jnp.broadcast_shapes(end.shape, shape)) for end in ends]
        return [flat_events(end, self.event_dim)[..., None, :] for end in wide]


@dataclass(frozen=True)
class CountFamily:
    """Proposals for events of `num_elements` integers."""

    num_elements: int
    num_components: int

    @property
    def size(self) -> int:
        """Number of outputs for one batch element."""
        return 1 + self.num_components + 2 * self.num_components * self.num_elements

    def features(self, fn: Distribution, value: Any) -> jax.Array:
        """The numbers themselves."""
        return flat_events(jnp.asarray(value, float), fn.event_dim)

    def prior_features(self, fn: Distribution) -> jax.Array:
        """Mean and log standard deviation of the prior."""
        mean, deviation = _moments(stopped(fn))
        return jnp.concatenate([mean, jnp.log(deviation)], axis=-1)

    def proposal(self, fn: Distribution, outputs: jax.Array) -> RoundedLogistics:
        """The prior and rounded logistics, moved by `outputs` of shape `(*batch, size)`."""
        prior, of_component = stopped(fn), (self.num_components, self.num_elements)
        weights, means, log_scales = cut(outputs, [(1 + self.num_components,), of_component, of_component])
        places, scale = spread(self.num_components, self.num_elements)
        mean, deviation = (x[..., None, :] for x in _moments(prior))
        means, places = of_one_rank(means, jnp.asarray(places, means.dtype))
        scales = deviation * jnp.exp(softly_bounded(log_scales)) * (scale * _LOGISTIC)
        # A scale that is much below one leaves no probability to the neighbours, and them no gradient.
        return RoundedLogistics(prior, log_weights(weights), mean + deviation * (means + places), scales + 0.05)


def count_family(fn: Distribution, num_components: int) -> CountFamily | None:
    """Proposals for a distribution of integers with bounds, or with one; None if it is not one, as of categories."""
    element = elementwise(fn)
    numbers = None if element is None else range_of(element)
    num_elements = math.prod(fn.event_shape)
    is_one = numbers is not None and numbers.is_discrete and num_elements > 0 and not is_categorical(fn)
    return CountFamily(num_elements, num_components) if is_one else None


def _moments(fn: Distribution) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each element, `(*batch, elements)`; 1 where a distribution does not tell."""
    try:
        mean, deviation = jnp.asarray(fn.mean, float), jnp.sqrt(jnp.asarray(fn.variance, float))
    except (NotImplementedError, AttributeError, TypeError):
        mean = deviation = jnp.ones(())
    shape = jnp.broadcast_shapes(mean.shape, deviation.shape, fn.shape())
    finite = jnp.isfinite(mean) & (jnp.abs(mean) < _LARGEST) & jnp.isfinite(deviation)
    wide = lambda x: flat_events(jnp.broadcast_to(jnp.where(finite, x, 1.0), shape), fn.event_dim)
    return wide(mean), jnp.clip(wide(deviation), 0.1, _LARGEST)
