"""Draws that floating point numbers round to the border of a support, or beyond, where densities are not finite.

A Gamma distribution of concentration 0.02 draws one number in six below the smallest normal number. All draws lie
inside of the support: such ones are moved to the nearest number there.
"""

from copy import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.distributions import Beta, Delta, Dirichlet, Distribution, constraints
from numpyro.distributions.transforms import Transform

from rws_jax.core.sites import base_distribution
from rws_jax.core.supports import elementwise, range_of
from rws_jax.core.trees import is_known, is_traced

# Their borders are not in them. In supports that are closed, border values may be drawn on purpose: zeros, say, of a
# rectified or zero-inflated variable.
_OPEN = constraints.greater_than, constraints.less_than, constraints.open_interval
_CLOSED = constraints.greater_than_eq, constraints.less_than_eq  # which are kinds of those
_HOLDERS = Distribution, Transform, constraints.Constraint


def may_round(fn: Distribution) -> bool:
    """Whether draws of a distribution are floating point numbers, or probabilities, that must not lie on a border."""
    base, support = base_distribution(fn), elementwise(fn)
    if isinstance(base, Beta | Dirichlet):
        return True  # whose supports are closed, and densities infinite there
    is_open = isinstance(support, _OPEN) and not isinstance(support, _CLOSED)
    return not isinstance(base, Delta) and (support is constraints.real or is_open)


def moved_inside(fn: Distribution, value: jax.Array) -> jax.Array:
    """A draw of `fn`, with what lies on or beyond the border of its support at the nearest number inside.

    Infinity and zero are given numbers that have inverses, as distributions may be those of the inverse.
    """
    numbers = range_of(elementwise(fn))
    if numbers is None:
        return jnp.maximum(value, jnp.finfo(value.dtype).tiny)  # probabilities, which may not be zero
    low, high = (_next(bound, sign, value.dtype) for bound, sign in ((numbers.low, 1), (numbers.high, -1)))
    if is_known((value, low, high)) and np.all((np.asarray(value) >= low) & (np.asarray(value) <= high)):
        return value
    # By a choice: for a clip, XLA on CPU would compute anew, for each use of a draw, all draws that it depends on.
    value = jnp.where(value < low, jnp.asarray(low, value.dtype), value)
    return jnp.where(value > high, jnp.asarray(high, value.dtype), value)


def constant_distribution(fn: Distribution) -> Distribution:
    """The same distribution with everything that it, and what it is made of, holds stopped.

    Attribute by attribute, as a class of the user's need not tell JAX of all its arrays.
    """
    return _constant(fn, {})


def _constant(value: Any, known: dict[int, Any]) -> Any:
    """What may be in a distribution, stopped; what is held twice, or holds itself, is stopped once."""
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, _HOLDERS):
        other = known[id(value)] = copy(value)
        vars(other).update({name: _constant(part, known) for name, part in vars(value).items()})
        return other
    if isinstance(value, jax.Array):
        return lax.stop_gradient(value)  # so that no way of drawing is differentiated
    if type(value) is dict:  # whose keys, unlike those of a tree, need no order
        return {name: _constant(part, known) for name, part in value.items()}
    if not isinstance(value, list | tuple) or jax.tree_util.all_leaves([value]):
        return value
    is_part = lambda part: part is not value
    return jax.tree.map(lambda part: _constant(part, known), value, is_leaf=is_part)


def _next(bound: Any, sign: int, dtype: Any) -> Any:
    """The next number above a bound, or below it; a bound that turns infinite at run time is wrong, and stays so."""
    tiny = jnp.finfo(dtype).tiny  # the smallest number that is not flushed to zero
    array = jnp if is_traced(bound) else np  # what is known is computed once
    bound = array.asarray(bound, dtype)
    bound = lax.stop_gradient(bound) if array is jnp else bound  # a border has no share in the gradient of a draw
    inside = array.where(abs(bound) < tiny, sign * tiny, array.nextafter(bound, array.asarray(sign / tiny, dtype)))
    return array.where(array.isinf(bound), bound, inside) if array is jnp else array.clip(inside, -1 / tiny, 1 / tiny)
