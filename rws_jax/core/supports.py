"""Supports of distributions: whether a value lies inside, a point that does, and whether one support covers another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro.distributions import Distribution, constraints

from rws_jax.core.numpyro_internals import mask_of, own_validation
from rws_jax.core.trees import is_known


def feasible(fn: Distribution, value: Any, proposal_dist: Distribution | None) -> jax.Array:
    """`value`, with events outside of the support of `fn` replaced by some point inside of it."""
    inside = in_support(fn, value, proposal_dist)
    if inside is None or is_all_known(inside):
        return value
    inside = jnp.reshape(inside, jnp.shape(inside) + (1,) * fn.event_dim)
    support: Any = fn.support
    return jnp.where(inside, value, support.feasible_like(value))


def in_support(fn: Distribution, value: Any, proposal_dist: Distribution | None) -> Any:
    """Whether each event lies in the support, an array of the shape of log densities; None: taken on trust.

    Masked events count as inside.
    """
    if isinstance(fn, dist.MaskedDistribution):
        inside = in_support(fn.base_dist, value, proposal_dist)
        return None if inside is None else inside | jnp.logical_not(mask_of(fn))
    if isinstance(fn, dist.ExpandedDistribution):
        return in_support(fn.base_dist, value, proposal_dist)
    if isinstance(fn, dist.Independent):
        inside = in_support(fn.base_dist, value, proposal_dist)
        return None if inside is None else inside.all(axis=tuple(range(-fn.reinterpreted_batch_ndims, 0)))
    element, support = elementwise(fn), fn.support
    if support is None or isinstance(fn, dist.Unit):  # numpyro.factor: an empty value
        return None
    if element is constraints.boolean or element.event_dim > 0:
        # Vectors and matrices (simplex, Cholesky factors) are tested within tolerances that float32 draws exceed, and
        # grey values as data of a Bernoulli are customary. So a value is trusted if it was drawn from such a support.
        # A Delta hands on a value that a joint guide has drawn: its own support tells nothing.
        known = proposal_dist is not None and not isinstance(proposal_dist, dist.Delta)
        if type(elementwise(proposal_dist)) is type(element) if known else element.event_dim > 0:
            return None
    test = own_validation(fn)
    if test is not None:
        return test(value)
    # Values that are known are tested by numpy, where JAX would compile each comparison.
    value = np.asarray(value) if is_known((value, *vars(support).values())) else jnp.asarray(value)
    return _of_events(support(value), fn.event_dim - support.event_dim)


def _of_events(inside: Any, num_dims: int) -> Any:
    """One truth for each event; a support may be that of its elements, which have so many dims fewer."""
    if num_dims > 0:
        return inside.all(axis=tuple(range(-num_dims, 0)))
    return inside.reshape(inside.shape + (1,) * -num_dims)


def mask_of_values(fn: Distribution) -> Any:
    """Which numbers of a value are scored, in a shape that broadcasts to it; None: all are."""
    if isinstance(fn, dist.MaskedDistribution):
        inner, mask = mask_of_values(fn.base_dist), mask_of(fn)
        if mask is True:
            return inner
        mask = np.asarray(mask) if isinstance(mask, bool) else mask  # a constant, whatever is traced
        own = mask.reshape(mask.shape + (1,) * fn.event_dim)
        return own if inner is None else own & inner
    return mask_of_values(fn.base_dist) if isinstance(fn, dist.ExpandedDistribution | dist.Independent) else None


def is_all_known(inside: Any) -> bool:
    """Whether it is known, and not traced, that all of some events are inside."""
    return not isinstance(inside, Tracer) and bool(np.all(inside))


def count_outside(fn: Distribution, value: Any) -> Any:
    """How many values are NaN, or outside of a support that does not depend on the distribution's parameters."""
    fixed = any(elementwise(fn) is support for support in _FIXED_SUPPORTS)
    inside = in_support(fn, value, fn) if fixed else None
    return 0 if inside is None or is_all_known(inside) else jnp.sum(jnp.logical_not(inside))


_FIXED_SUPPORTS = [
    constraints.real,
    constraints.positive,
    constraints.nonnegative,
    constraints.unit_interval,
    constraints.nonnegative_integer,
    constraints.positive_integer,
]


def kind_of_support(fn: Distribution) -> str:
    """What kind of numbers one element is, whatever its bounds."""
    name = type(elementwise(fn)).__name__.lstrip("_").lower().replace("_", "")
    if fn.is_discrete:
        return "integers"
    if "interval" in name:
        return "an interval"
    halves = "positive", "nonnegative", "greaterthan", "lessthan"
    return "a half-line" if name.startswith(halves) else {"real": "the real line"}.get(name, name)


def bounds(fn: Distribution) -> tuple:
    """Least and greatest number that a distribution can draw, as far as it has them."""
    numbers = None if elementwise(fn) is None else range_of(elementwise(fn))
    return () if numbers is None else tuple(jnp.asarray(bound, float) for bound in numbers[1:])


def fits(fn: Distribution, drawn: Any, dtype: Any) -> bool:
    """Whether what a distribution draws, numbers of type `drawn`, are numbers of `dtype` too.

    Floating point numbers are rounded, as data of that type have been. A bound of the support that is traced, or that
    the distribution does not have, is that of `drawn`; some samplers return counts as floats.
    """
    if jnp.issubdtype(dtype, jnp.inexact):
        return True
    if not fn.is_discrete:
        return False
    support, (low, high) = elementwise(fn), _limits(jnp.int32 if jnp.issubdtype(drawn, jnp.inexact) else drawn)
    low = 0 if isinstance(support, constraints.multinomial) else low
    own = getattr(support, "lower_bound", low), getattr(support, "upper_bound", high)
    own = (0, 1) if support is constraints.boolean else own
    low = low if isinstance(own[0], Tracer) else max(low, np.min(own[0]))
    high = high if isinstance(own[1], Tracer) else min(high, np.max(own[1]))
    least, greatest = _limits(dtype)
    return bool(least <= low and high <= greatest)


def _limits(dtype: Any) -> tuple[int, int]:
    """Least and greatest number of a type of integers, or of bools."""
    return (0, 1) if jnp.issubdtype(dtype, jnp.bool_) else (int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max))


def elementwise(fn: Any) -> Any:
    """The support of one element of a distribution."""
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


class Range(NamedTuple):
    """All numbers, or all integers, from `low` to `high`."""

    is_discrete: bool
    low: Any
    high: Any


def range_of(support: Any) -> Range | None:
    """The numbers of a support of numbers; None for vectors and matrices."""
    if support is constraints.boolean:
        return Range(True, 0, 1)
    bounded = hasattr(support, "lower_bound") or hasattr(support, "upper_bound")
    if support.event_dim > 0 or not (support is constraints.real or bounded):
        return None
    low, high = getattr(support, "lower_bound", -jnp.inf), getattr(support, "upper_bound", jnp.inf)
    return Range(support.is_discrete, low, high)


def covers(guide: Any, model: Any, *, bounds_count: bool = False) -> bool:
    """Whether one support includes another, as far as can be told; a bound not known yet counts as fitting.

    So does another finite bound of real numbers, unless `bounds_count`.
    """
    if guide is None or model is None:
        return True
    if guide.is_discrete != model.is_discrete:
        return False
    outer, inner = range_of(guide), range_of(model)
    if outer is None:  # vectors and matrices of some kind
        return type(guide) is type(model)
    if inner is None:  # all real vectors include those of full dimension, and no draw is one of the others
        unbounded = guide is constraints.real
        return unbounded and any(model is support for support in _FULL_DIMENSION)
    if any(isinstance(bound, Tracer) for bound in (*outer, *inner)):
        return True
    low, high, inner_low, inner_high = (np.asarray(bound, float) for bound in (*outer[1:], *inner[1:]))
    if not (bounds_count or model.is_discrete):
        low, high = np.where(np.isfinite(inner_low), -np.inf, low), np.where(np.isfinite(inner_high), np.inf, high)
    rounding = lambda bound: 1e-5 * (1.0 + np.abs(np.where(np.isfinite(bound), bound, 0.0)))
    low_enough = low <= inner_low + rounding(inner_low)
    return bool(np.all(low_enough) and np.all(high >= inner_high - rounding(inner_high)))


_FULL_DIMENSION = [constraints.ordered_vector, constraints.positive_ordered_vector, constraints.l1_ball]
