"""A joint distribution of the elements of a batch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution


class Elements(Distribution):
    """The event of a joint distribution as a batch, whose elements may depend on one another.

    The log density of the event is divided evenly among its elements, so that the sum over the batch is right.

    Args:
        joint: Distribution of all elements.
        prior: Distribution with the batch shape and the support of the elements.
    """

    pytree_data_fields = ("joint", "prior")

    def __init__(self, joint: Distribution, prior: Distribution):
        self.joint, self.prior = joint, prior
        super().__init__(prior.batch_shape, prior.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """That of one element."""
        return self.prior.support

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """The share of each element, in nats."""
        joint = jnp.asarray(self.joint.log_prob(value))
        shape = self.joint.event_shape[: self.joint.event_dim - self.event_dim]
        share = joint.reshape(joint.shape + (1,) * len(shape)) / math.prod(shape)
        return jnp.broadcast_to(share, joint.shape + shape)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """All elements, drawn together."""
        return jnp.asarray(self.joint.sample(key, sample_shape))
