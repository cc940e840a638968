"""The real vector that a value of a distribution corresponds to, by the bijection to its support."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution, biject_to
from numpyro.distributions.transforms import Transform


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
    try:
        transform: Any = biject_to(support)
    except NotImplementedError:
        return None
    num_extra = fn.event_dim - transform.codomain.event_dim
    if num_extra < 0:
        return None
    shape = transform.inverse_shape(fn.shape())
    vector_shape = shape[len(shape) - transform.domain.event_dim - num_extra :]
    return Coordinates(transform, num_extra, vector_shape, fn.event_shape)
