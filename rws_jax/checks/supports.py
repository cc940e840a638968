"""What the supports of model and guide must be to one another, and the messages that say so."""

import warnings
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro.distributions import Distribution, constraints

from rws_jax.core.errors import fail
from rws_jax.core.sites import base_distribution
from rws_jax.core.supports import covers, elementwise, range_of


def warn_of_narrower(name: str, guide_fn: Distribution, fn: Distribution) -> None:
    """Right if the data rule out the rest of the model's support, and a guide that misses something if not."""
    known = not (isinstance(base_distribution(guide_fn), dist.Delta) or isinstance(base_distribution(fn), dist.Delta))
    if known and not covers(elementwise(guide_fn), elementwise(fn), bounds_count=True):
        warnings.warn(
            f"at latent site {name!r} the guide draws {describe_support(elementwise(guide_fn))} alone, and the model"
            f" {describe_support(elementwise(fn))}: this is right only if the data rule out the rest",
            stacklevel=2,
        )


def check_covers(name: str, guide_fn: Distribution, fn: Distribution, role: str) -> None:
    """A guide that cannot draw all that the model can would be wrong in silence: those values would go missing."""
    if isinstance(base_distribution(guide_fn), dist.Delta) or isinstance(base_distribution(fn), dist.Delta):
        return
    guide_support, support = elementwise(guide_fn), elementwise(fn)
    if not covers(guide_support, support):
        fail(
            ValueError,
            f"supports differ at latent site {name!r}: the guide cannot draw all that the {role} can",
            expected=f"{describe_support(support)}, the support of {family_of(fn)} in the {role}",
            found=f"{describe_support(guide_support)}, the support of {family_of(guide_fn)} in the guide",
            hint=f"use {_alternative(support)} in the guide"
            if role == "model"
            else f"use {_alternative(guide_support)} in the {role}",
        )


def check_same_support(name: str, guide_fn: Distribution, fn: Distribution) -> None:
    """Where the weight drops to zero at an edge that draws move across, the reparameterised gradient misses a term."""
    if not (
        isinstance(base_distribution(guide_fn), dist.Delta)
        or covers(elementwise(fn), elementwise(guide_fn), bounds_count=True)
    ):
        fail(
            ValueError,
            f"option 'gradient' is 'dreg', but the guide draws more than the model can at latent site {name!r}",
            expected=f"{describe_support(elementwise(fn))}, the support of {family_of(fn)} in the model",
            found=f"{describe_support(elementwise(guide_fn))}, the support of {family_of(guide_fn)} in the guide",
            hint=f"use {_alternative(elementwise(fn))} in the guide, or gradient='score'",
        )


def check_fixed(name: str, tangents: Any) -> None:
    """`tangents` say how the bounds of a guide's support move with its parameters."""
    if any(np.any(np.asarray(t) != 0.0) for t in jax.tree.leaves(tangents) if t.dtype != jax.dtypes.float0):
        fail(
            ValueError,
            f"the support of the guide at latent site {name!r} depends on its parameters",
            expected="a fixed support, or options control_variate=False and gradient='score':"
            " on a moving one the score does not have expectation zero",
            found="bounds that move with the guide's parameters",
            hint="pass control_variate=False and gradient='score'; or transform a distribution of fixed support",
        )


def family_of(fn: Distribution) -> str:
    """What messages call a distribution, whatever is put around it."""
    return type(base_distribution(fn)).__name__.removesuffix("Probs").removesuffix("Logits")


def describe_support(support: Any) -> str:
    """A support, or a constraint of parameters, in words."""
    numbers = range_of(support)
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
    numbers = range_of(support)
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
