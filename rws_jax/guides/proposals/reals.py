r"""Proposals for real numbers, vectors and matrices: a mixture of Gaussians in unconstrained space, and of the prior.

The coordinates :math:`u` are those of the bijection from real vectors to the support, less the prior's location there
and in units of its scale. Elements of one event depend on those before them, in order:

.. math:: u_d \mid u_{<d} \sim \mathcal{N}(m_d + \sum_{e<d} A_{de} u_e, \; s_d^2)
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from numpyro.distributions import Distribution, constraints

from rws_jax.core.draws import may_round
from rws_jax.core.supports import elementwise
from rws_jax.guides.proposals.arrays import cut, of_one_rank, softly_bounded, stopped, strictly_lower
from rws_jax.guides.proposals.coordinates import coordinates_of
from rws_jax.guides.proposals.frame import Frame, frame_of
from rws_jax.guides.proposals.mixture import PriorMixture, chosen, log_weights, spread

MAX_DEPENDENT = 16
_FAR = 1e14  # where squares of standardised numbers would overflow
_STEEP = 80.0  # exp(-80) is little more than the smallest normal number in float32
_LOG_NORMAL = 0.5 * math.log(2.0 * math.pi)


class Gaussians(PriorMixture):
    """A prior on a support that has a bijection from real vectors, and Gaussians on these vectors.

    Args:
        prior: Distribution of the same batch shape, event shape and support.
        log_weights: Of the prior and of each component, `(*batch, 1 + components)`.
        frame: Location and scale of the coordinates, `(*batch, elements)` each.
        means: `(*batch, components, elements)`, in the frame.
        log_scales: The same shape.
        slopes: `(*batch, components, elements, elements)`, strictly lower triangular; None if elements are independent.
    """

    pytree_data_fields = ("location", "scale", "means", "log_scales", "slopes")

    def __init__(
        self,
        prior: Distribution,
        log_weights: jax.Array,
        frame: Frame,
        means: jax.Array,
        log_scales: jax.Array,
        slopes: jax.Array | None,
    ):
        self.location, self.scale = frame
        self.means, self.log_scales, self.slopes = means, log_scales, slopes
        super().__init__(prior, log_weights)

    def log_densities(self, value: jax.Array) -> jax.Array:
        """Minus infinity where a number lies on the border, or has no inverse for another reason."""
        x, near = self._place(value)
        if may_round(self.prior) and elementwise(self.prior) is not constraints.real:
            # Derivatives by numbers next to the border overflow.
            is_steep = (jnp.abs(x) > _STEEP).any(axis=-1)
            if elementwise(self.prior) is constraints.simplex:
                rest = 1.0 - jnp.cumsum(value[..., :-1], axis=-1)  # which rounds to zero before probabilities do
                is_steep = (rest < 1e-6) | (value[..., 1:] < math.exp(-_STEEP)) | (value[..., :1] < math.exp(-_STEEP))
                is_steep = is_steep.any(axis=tuple(range(-self.event_dim, 0)))
            is_steep = is_steep.reshape(near.shape + (1,) * self.event_dim)
            value = jnp.where(is_steep, lax.stop_gradient(value), value)
        # The inverse is taken where it and its derivatives are finite.
        support: Any = self.support
        is_event_near = near.reshape(near.shape + (1,) * self.event_dim)
        u, log_det, _ = self._standardised(jnp.where(is_event_near, value, support.feasible_like(value)))
        return _log_densities(u, log_det, near, self.means, self.log_scales, self.slopes)

    def draws(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """One event for each index of a component."""
        coordinates = coordinates_of(self.prior)
        assert coordinates is not None
        frame = self.location, self.scale
        return coordinates.forward(_drawn(key, index, self.means, self.log_scales, self.slopes, frame))

    def _place(self, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Coordinates, and whether they and their density are finite; conditions on these have no derivative."""
        u, log_det, x = self._standardised(lax.stop_gradient(value))
        return x, jnp.all(jnp.abs(u) < _FAR, axis=-1) & jnp.isfinite(log_det)  # which NaN is not

    def _standardised(self, value: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Coordinates in the frame, `(*batch, elements)`, log |du/dvalue|, and coordinates as they are."""
        coordinates = coordinates_of(self.prior)
        assert coordinates is not None
        return _in_frame(*coordinates.inverse(value), self.location, self.scale)


@dataclass(frozen=True)
class RealFamily:
    """Proposals for events that correspond to `num_elements` real numbers."""

    num_elements: int
    num_components: int

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parts of outputs: weights, means, log scales, and slopes."""
        of_component = (self.num_components, self.num_elements)
        shapes = [(1 + self.num_components,), of_component, of_component]
        if 1 < self.num_elements <= MAX_DEPENDENT:
            shapes.append((self.num_components, self.num_elements * (self.num_elements - 1) // 2))
        return shapes

    @property
    def size(self) -> int:
        """Number of outputs for one batch element."""
        return sum(math.prod(shape) for shape in self.shapes)

    def features(self, fn: Distribution, value: Any) -> jax.Array:
        """Unconstrained coordinates; what is infinite, as on borders, counts as 100."""
        coordinates = coordinates_of(fn)
        assert coordinates is not None
        return jnp.nan_to_num(coordinates.inverse(jnp.asarray(value))[0], nan=0.0, posinf=100.0, neginf=-100.0)

    def prior_features(self, fn: Distribution) -> jax.Array:
        """Location and log scale of the prior in unconstrained coordinates."""
        location, scale = frame_of(stopped(fn))
        return jnp.concatenate([location, jnp.log(scale)], axis=-1)

    def proposal(self, fn: Distribution, outputs: jax.Array) -> Gaussians:
        """The prior and Gaussians, moved by `outputs` of shape `(*batch, size)`."""
        prior = stopped(fn)
        weights, *parts = _moved(self, outputs)
        return Gaussians(prior, weights, frame_of(prior), *parts)


def real_family(fn: Distribution, num_components: int) -> RealFamily | None:
    """Proposals for a distribution on a support with a bijection from real vectors; None if it has none."""
    coordinates = coordinates_of(fn)
    if coordinates is None or coordinates.num_elements == 0:
        return None
    return RealFamily(coordinates.num_elements, num_components)


# Programs that branch run un-jitted: these cost one call each then, and not one for each operation.
@partial(jax.jit, static_argnums=0, inline=True)
def _moved(family: RealFamily, outputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Log weights, means, log scales and slopes."""
    weights, means, log_scales, *slopes = cut(outputs, family.shapes)
    places, scale = spread(family.num_components, family.num_elements)
    places = jnp.asarray(places, means.dtype).reshape((1,) * (means.ndim - 2) + places.shape)
    below = strictly_lower(softly_bounded(slopes[0]), family.num_elements) if slopes else None
    return log_weights(weights), means + places, softly_bounded(log_scales) + math.log(scale), below


@partial(jax.jit, inline=True)
def _in_frame(
    x: jax.Array, log_det: jax.Array, location: jax.Array, scale: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, location, scale = of_one_rank(x, location, scale)
    log_det, log_scale = of_one_rank(log_det, jnp.sum(jnp.log(scale), axis=-1))
    return (x - location) / scale, log_det - log_scale, x


@partial(jax.jit, inline=True)
def _log_densities(
    u: jax.Array, log_det: jax.Array, near: jax.Array, means: jax.Array, log_scales: jax.Array, slopes: jax.Array | None
) -> jax.Array:
    u, means, log_scales = of_one_rank(u[..., None, :], means, log_scales)
    if slopes is not None:
        slopes, before = of_one_rank(slopes, u[..., None, :])
        means = means + jnp.sum(slopes * before, axis=-1)
    terms = 0.5 * ((u - means) * jnp.exp(-log_scales)) ** 2 + log_scales + _LOG_NORMAL
    densities = -jnp.sum(terms, axis=-1)
    near, log_det, densities = of_one_rank(near[..., None], log_det[..., None], densities)
    return jnp.where(near, densities + log_det, -jnp.inf)


@partial(jax.jit, inline=True)
def _drawn(
    key: jax.Array,
    index: jax.Array,
    means: jax.Array,
    log_scales: jax.Array,
    slopes: jax.Array | None,
    frame: Frame,
) -> jax.Array:
    """Coordinates of draws from the components that indices say."""
    noise = jax.random.normal(key, (*index.shape, means.shape[-1]))
    u = chosen(means, index, 1) + jnp.exp(chosen(log_scales, index, 1)) * noise
    if slopes is not None:
        # The solver takes the ones on the diagonal of I - A for granted.
        rest = {"left_side": True, "lower": True, "unit_diagonal": True}
        u = lax.linalg.triangular_solve(-chosen(slopes, index, 2), u[..., None], **rest)[..., 0]
    u, location, scale = of_one_rank(u, *frame)
    return location + scale * u
