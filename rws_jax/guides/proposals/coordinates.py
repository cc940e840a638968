"""The real vector that a value of a distribution corresponds to, by the bijection to its support."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    TransformedDistribution,
    biject_to,
    constraints,
)
from numpyro.distributions.transforms import ComposeTransform, Transform

from rws_jax.core.supports import covers, elementwise


class Coordinates(NamedTuple):
    """A bijection from real vectors to the events of a distribution."""

    transform: Transform
    num_extra: int  # event dimensions beside those that the bijection knows
    vector_shape: tuple[int, ...]
    event_shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """How many real numbers one event has."""
        return math.prod(self.vector_shape)

    def inverse(self, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Real vectors `(*batch, elements)`, and log |dx/dvalue| `(*batch)`; neither needs to be finite on borders."""
        with jax.numpy_rank_promotion("allow"):  # bounds of a support have its batch shape, and values may have more
            x: Any = self.transform.inv(value)
            log_det: Any = self.transform.log_abs_det_jacobian(x, value)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        log_det = jnp.sum(log_det, axis=tuple(range(-self.num_extra, 0)))
        batch = jnp.broadcast_shapes(batch, x.shape[: x.ndim - len(self.vector_shape)])
        return jnp.reshape(x, (*batch, self.num_elements)), -jnp.broadcast_to(log_det, batch)

    def forward(self, x: jax.Array) -> jax.Array:
        """Events `(*batch, *event)` of real vectors `(*batch, elements)`."""
        with jax.numpy_rank_promotion("allow"):
            value: Any = self.transform(jnp.reshape(x, x.shape[:-1] + self.vector_shape))
        return value


def coordinates_of(fn: Distribution) -> Coordinates | None:
    """Coordinates of the events of a distribution; None if its support has no bijection from real vectors."""
    support: Any = fn.support
    if support is None or support.is_discrete:
        return None
    transform = _bijection(fn)
    if transform is None or fn.event_dim < transform.codomain.event_dim:
        return None
    num_extra = fn.event_dim - transform.codomain.event_dim
    shape = transform.inverse_shape(fn.shape())
    vector_shape = shape[len(shape) - transform.domain.event_dim - num_extra :]
    return Coordinates(transform, num_extra, vector_shape, fn.event_shape)


def _bijection(fn: Distribution) -> Any:
    """From real vectors to the support; None if there is none.

    A transformed distribution declares what its last transform can give, which may be more than it does give: ordered
    vectors, say, whose numbers are then made positive. Its own transforms are followed then.
    """
    base = fn
    while isinstance(base, ExpandedDistribution | Independent):
        base = base.base_dist
    try:
        if not isinstance(base, TransformedDistribution) or _declares_its_support(base):
            return biject_to(fn.support)
        inner = _bijection(base.base_dist)
    except NotImplementedError:
        return None
    return None if inner is None else ComposeTransform([inner, *base.transforms])


def _declares_its_support(fn: TransformedDistribution) -> bool:
    support = elementwise(fn.base_dist)
    for transform in _parts(fn.transforms):
        domain, codomain = (_of_elements(end) for end in (transform.domain, transform.codomain))
        if not (covers(domain, support) and covers(support, domain, bounds_count=True)):
            return False
        support = codomain
    return True


def _parts(transforms: Any) -> list[Any]:
    return [part for t in transforms for part in (_parts(t.parts) if isinstance(t, ComposeTransform) else [t])]


def _of_elements(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support
