"""Supports of distributions: whether a value lies inside, a point that does, and whether one support covers another."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro.distributions import Distribution, constraints

from rws_jax.sites import base
from rws_jax.validation import fail


def feasible(fn: Distribution, value: Any, drawn_from: Distribution | None) -> jax.Array:
    """`value`, with events outside of the support of `fn` replaced by some point inside of it."""
    inside = in_support(fn, value, drawn_from)
    if inside is None:
        return value
    inside = jnp.reshape(inside, jnp.shape(inside) + (1,) * fn.event_dim)
    support: Any = fn.support
    return jnp.where(inside, value, support.feasible_like(value))


def in_support(fn: Distribution, value: Any, drawn_from: Distribution | None) -> Any:
    """Whether each event lies in the support; masked events count as inside. None: taken on trust."""
    if isinstance(fn, dist.MaskedDistribution):
        inside = in_support(fn.base_dist, value, drawn_from)
        return None if inside is None else inside | jnp.logical_not(fn._mask)
    if isinstance(fn, dist.ExpandedDistribution):
        return in_support(fn.base_dist, value, drawn_from)
    if isinstance(fn, dist.Independent):
        inside = in_support(fn.base_dist, value, drawn_from)
        return None if inside is None else jnp.all(inside, axis=tuple(range(-fn.reinterpreted_batch_ndims, 0)))
    element, support = _elementwise(fn), fn.support
    if support is None or isinstance(fn, dist.Unit):  # numpyro.factor: an empty value
        return None
    if element is constraints.boolean or element.event_dim > 0:
        # Vectors and matrices (simplex, Cholesky factors) are tested within tolerances that float32 draws exceed, and
        # grey values as data of a Bernoulli are customary. So a value is trusted if it was drawn from such a support.
        # A Delta hands on a value that a joint guide has drawn: its own support tells nothing.
        known = drawn_from is not None and not isinstance(drawn_from, dist.Delta)
        if type(_elementwise(drawn_from)) is type(element) if known else element.event_dim > 0:
            return None
    return support(value)


def _elementwise(fn: Any) -> Any:
    """The support of one element of a distribution."""
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def count_outside(fn: Distribution, value: Any) -> Any:
    """How many values are NaN, or outside of a support that does not depend on the distribution's parameters."""
    fixed = any(_elementwise(fn) is support for support in _FIXED_SUPPORTS)
    inside = in_support(fn, value, fn) if fixed else None
    return 0 if inside is None else jnp.sum(jnp.logical_not(inside))


_FIXED_SUPPORTS = [
    constraints.real,
    constraints.positive,
    constraints.nonnegative,
    constraints.unit_interval,
    constraints.nonnegative_integer,
    constraints.positive_integer,
]


def kind_of_support(fn: Distribution) -> str:
    """Of one element, whatever its bounds."""
    name = type(_elementwise(fn)).__name__.lstrip("_").lower().replace("_", "")
    if fn.is_discrete:
        return "integers"
    if "interval" in name:
        return "an interval"
    halves = "positive", "nonnegative", "greaterthan", "lessthan"
    return "a half-line" if name.startswith(halves) else {"real": "the real line"}.get(name, name)


def warn_of_narrower(name: str, guide_fn: Distribution, fn: Distribution) -> None:
    """Right if the data rule out the rest of the model's support, and a guide that misses something if not."""
    known = not (isinstance(base(guide_fn), dist.Delta) or isinstance(base(fn), dist.Delta))
    if known and not _covers(_elementwise(guide_fn), _elementwise(fn), bounds_count=True):
        warnings.warn(
            f"at latent site {name!r} the guide draws {_describe(_elementwise(guide_fn))} alone, and the model"
            f" {_describe(_elementwise(fn))}: this is right only if the data rule out the rest",
            stacklevel=2,
        )


def check_covers(name: str, guide_fn: Distribution, fn: Distribution, role: str) -> None:
    """A guide that cannot draw all that the model can would be wrong in silence: those values would go missing."""
    if isinstance(base(guide_fn), dist.Delta) or isinstance(base(fn), dist.Delta):
        return
    guide_support, support = _elementwise(guide_fn), _elementwise(fn)
    if not _covers(guide_support, support):
        fail(
            ValueError,
            f"supports differ at latent site {name!r}: the guide cannot draw all that the {role} can",
            expected=f"{_describe(support)}, the support of {_name(fn)} in the {role}",
            found=f"{_describe(guide_support)}, the support of {_name(guide_fn)} in the guide",
            hint=f"use {_alternative(support)} in the guide"
            if role == "model"
            else f"use {_alternative(guide_support)} in the {role}",
        )


def check_same_support(name: str, guide_fn: Distribution, fn: Distribution) -> None:
    """Where the weight drops to zero at an edge that draws move across, the pathwise gradient misses a term."""
    if not (
        isinstance(base(guide_fn), dist.Delta) or _covers(_elementwise(fn), _elementwise(guide_fn), bounds_count=True)
    ):
        fail(
            ValueError,
            f"option 'gradient' is 'dreg', but the guide draws more than the model can at latent site {name!r}",
            expected=f"{_describe(_elementwise(fn))}, the support of {_name(fn)} in the model",
            found=f"{_describe(_elementwise(guide_fn))}, the support of {_name(guide_fn)} in the guide",
            hint=f"use {_alternative(_elementwise(fn))} in the guide, or gradient='score'",
        )


def check_fixed(name: str, tangents: Any) -> None:
    """`tangents` say how the bounds of a guide's support move with its parameters."""
    if any(bool(jnp.any(t != 0.0)) for t in jax.tree.leaves(tangents) if t.dtype != jax.dtypes.float0):
        fail(
            ValueError,
            f"the support of the guide at latent site {name!r} depends on its parameters",
            expected="a fixed support, or options control_variate=False and gradient='score':"
            " on a moving one the score does not have expectation zero",
            found="bounds that move with the guide's parameters",
            hint="pass control_variate=False; or transform a distribution of fixed support",
        )


def bounds(fn: Distribution) -> tuple:
    """Least and greatest number that a distribution can draw, as far as it has them."""
    numbers = None if _elementwise(fn) is None else _range_of(_elementwise(fn))
    return () if numbers is None else tuple(jnp.asarray(bound, float) for bound in numbers[1:])


class _Range(NamedTuple):
    """All numbers, or all integers, from `low` to `high`."""

    is_discrete: bool
    low: Any
    high: Any


def _range_of(support: Any) -> _Range | None:
    if support is constraints.boolean:
        return _Range(True, 0, 1)
    bounded = hasattr(support, "lower_bound") or hasattr(support, "upper_bound")
    if support.event_dim > 0 or not (support is constraints.real or bounded):
        return None
    low, high = getattr(support, "lower_bound", -jnp.inf), getattr(support, "upper_bound", jnp.inf)
    return _Range(support.is_discrete, low, high)


def _covers(guide: Any, model: Any, *, bounds_count: bool = False) -> bool:
    """Whether one support includes another, as far as can be told; a bound not known yet counts as fitting.

    So does another finite bound of real numbers, unless `bounds_count`.
    """
    if guide is None or model is None:
        return True
    if guide.is_discrete != model.is_discrete:
        return False
    outer, inner = _range_of(guide), _range_of(model)
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


def _name(fn: Distribution) -> str:
    return type(base(fn)).__name__.removesuffix("Probs").removesuffix("Logits")


def _describe(support: Any) -> str:
    numbers = _range_of(support)
    if numbers is None:
        return type(support).__name__.lstrip("_")
    what = "integers" if numbers.is_discrete else "real numbers"
    low, high = (_show_bound(bound) for bound in numbers[1:])
    return what + ("" if low == "-inf" else f" from {low}") + ("" if high == "inf" else f" to {high}")


def _show_bound(bound: Any) -> str:
    values = set() if isinstance(bound, Tracer) else set(np.ravel(bound).tolist())
    return f"{values.pop():g}" if len(values) == 1 else "a varying bound"


_ALTERNATIVES = {("-inf", "inf"): "dist.Normal", ("0", "inf"): "dist.LogNormal", ("0", "1"): "dist.Beta"}


def _alternative(support: Any) -> str:
    """A distribution for a guide, by the support that it has to cover."""
    numbers = _range_of(support)
    if support is constraints.boolean:
        return "dist.Bernoulli"
    if numbers is not None:
        low, high = (_show_bound(bound) for bound in numbers[1:])
        if numbers.is_discrete:
            return "dist.Poisson" if high == "inf" else "dist.Categorical, with as many categories,"
        if (low, high) in _ALTERNATIVES:
            return _ALTERNATIVES[low, high]
    if support is constraints.simplex:
        return "dist.Dirichlet"
    return "dist.TransformedDistribution(dist.Normal(...), dist.biject_to(support))"
