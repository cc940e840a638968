"""A joint proposal for all numbers of a site that is in no plate, in the shapes of the prior there."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution

from rws_jax.guides.proposals.arrays import stopped


class Unplated(Distribution):
    """A distribution of one event, part of whose dimensions are called a batch.

    The batch shape is the prior's, and all of its elements may depend on one another: each has an equal share of the
    log density. The sum of these is all that is asked for where no plate makes units of the elements.

    Args:
        prior: Distribution of the same batch shape, event shape and support.
        joint: Distribution without a batch shape, whose events are the prior's batches.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    pytree_data_fields = ("prior", "joint")

    def __init__(self, prior: Distribution, joint: Distribution):
        self.prior, self.joint = stopped(prior), joint
        super().__init__(prior.batch_shape, prior.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The prior's own."""
        return self.prior.support

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw whole batches."""
        return jnp.asarray(self.joint.sample(key, sample_shape))

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Equal shares of the joint log density, in nats, for each element of the batch."""
        log_prob = jnp.asarray(self.joint.log_prob(value))
        share = log_prob / max(1, math.prod(self.batch_shape))
        ones = (1,) * len(self.batch_shape)
        return jnp.broadcast_to(share.reshape((*log_prob.shape, *ones)), (*log_prob.shape, *self.batch_shape))
