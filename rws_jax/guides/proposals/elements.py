"""A joint distribution of the elements of a batch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution


class Elements(Distribution):
    """The last event dims of a distribution, as batch dims: its elements may depend on one another.

    The log density of an event is divided evenly among its elements, so that the sum over the batch is right.

    Args:
        joint: Distribution of all elements.
        num_dims: How many of its event dims, from the left, are batch dims here.
    """

    pytree_data_fields = ("joint",)
    pytree_aux_fields = ("num_dims",)

    def __init__(self, joint: Distribution, num_dims: int):
        self.joint, self.num_dims = joint, num_dims
        shape = joint.event_shape
        super().__init__((*joint.batch_shape, *shape[:num_dims]), shape[num_dims:], validate_args=False)

    @property
    def support(self) -> Any:
        """That of one element."""
        support: Any = self.joint.support
        num_kept = self.joint.event_dim - self.num_dims
        while support.event_dim > num_kept:
            num_left = support.event_dim - num_kept
            if num_left >= support.reinterpreted_batch_ndims:
                support = support.base_constraint
            else:
                return type(support)(support.base_constraint, support.reinterpreted_batch_ndims - num_left)
        return support

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """The share of each element, in nats."""
        joint = jnp.asarray(self.joint.log_prob(value))
        shape = self.joint.event_shape[: self.num_dims]
        share = joint / math.prod(shape)
        return jnp.broadcast_to(share.reshape(share.shape + (1,) * self.num_dims), share.shape + shape)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """All elements, drawn together."""
        return self.joint.sample(key, sample_shape)
