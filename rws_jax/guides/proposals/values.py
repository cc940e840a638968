"""The values that a prior can take, where they are few, and their probabilities."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import (
    BernoulliLogits,
    BernoulliProbs,
    CategoricalLogits,
    CategoricalProbs,
    Distribution,
    ExpandedDistribution,
    Independent,
)

from rws_jax.core.sites import base_distribution
from rws_jax.core.supports import range_of
from rws_jax.core.trees import is_known

MAX_VALUES = 64  # of integers, which have an order
MAX_CATEGORIES = 1024


def values_of(fn: Distribution) -> tuple | None:
    """The values that each element of an event can take, where they are known and few."""
    element = _element(fn)
    if element is None or not element.has_enumerate_support:
        return None
    numbers = range_of(element.support)
    # Bounds that are traced, or differ within a batch, are no common list of values.
    if numbers is None or not numbers.is_discrete or not is_known(numbers[1:]):
        return None
    low, high = (np.unique(bound) for bound in numbers[1:])
    if len(low) != 1 or len(high) != 1 or not np.isfinite([low[0], high[0]]).all():
        return None
    most = MAX_CATEGORIES if is_categorical(element) else MAX_VALUES
    return tuple(range(int(low[0]), int(high[0]) + 1)) if 1 <= high[0] - low[0] < most else None


def log_probs_of_values(fn: Distribution, values: tuple) -> jax.Array:
    """Log-probability of each value, in nats, of shape `(*batch, elements, values)`.

    The distribution need not know its values: under `jax.jit` the bounds of a uniform one are traced.
    """
    element = _element(fn)
    assert element is not None
    base: Any = element
    while isinstance(base, ExpandedDistribution):
        base = base.base_dist
    if isinstance(base, CategoricalProbs | CategoricalLogits | BernoulliProbs | BernoulliLogits):
        log_probs = _of_logits(jnp.asarray(base.logits), isinstance(base, BernoulliProbs | BernoulliLogits))
    else:
        of_value = lambda value: element.log_prob(jnp.full(element.batch_shape, value))
        log_probs = jax.vmap(of_value, out_axes=-1)(jnp.asarray(values))
    log_probs = jnp.broadcast_to(log_probs, (*fn.shape(), len(values)))
    return log_probs.reshape((*fn.batch_shape, math.prod(fn.event_shape), len(values)))


@partial(jax.jit, static_argnums=1, inline=True)
def _of_logits(logits: jax.Array, is_bernoulli: bool) -> jax.Array:
    return jax.nn.log_softmax(jnp.stack([jnp.zeros_like(logits), logits], axis=-1) if is_bernoulli else logits)


def _element(fn: Distribution) -> Distribution | None:
    """The distribution of single numbers inside of event dimensions; None where an event is more than that."""
    while isinstance(fn, Independent) or (isinstance(fn, ExpandedDistribution) and fn.event_dim > 0):
        fn = fn.base_dist
    return None if fn.event_dim > 0 else fn


def is_categorical(fn: Distribution) -> bool:
    """Whether the values of a distribution are numbers in no order."""
    return isinstance(base_distribution(fn), CategoricalProbs | CategoricalLogits)
