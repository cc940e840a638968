"""Which proposals a prior can have, by its support."""

from typing import Any, Protocol

import jax
import numpyro.distributions as dist
from numpyro.distributions import Distribution

from rws_jax.checks.supports import describe_support
from rws_jax.core.sites import base_distribution
from rws_jax.core.supports import elementwise
from rws_jax.guides.proposals.circular import circular_family
from rws_jax.guides.proposals.counts import count_family
from rws_jax.guides.proposals.finite import finite_family
from rws_jax.guides.proposals.reals import real_family
from rws_jax.guides.proposals.values import MAX_CATEGORIES, is_categorical


class Family(Protocol):
    """Proposals for one site: distributions of the prior's batch shape, event shape and support.

    All of it is static. Batch shapes are those of the prior that is given; a family holds for priors of any.
    """

    @property
    def size(self) -> int:
        """Number of outputs for one batch element."""
        ...

    def features(self, fn: Distribution, value: Any) -> jax.Array:
        """Describe a value by finite numbers, `(*batch, n)`; it may have more batch dimensions than `fn`."""
        ...

    def prior_features(self, fn: Distribution) -> jax.Array:
        """Describe a prior by finite numbers, `(*batch, n)`."""
        ...

    def proposal(self, fn: Distribution, outputs: jax.Array) -> Distribution:
        """The proposal that `outputs` of shape `(*batch, size)` describe; about the prior where they are zero."""
        ...


def family_of(fn: Distribution, components: int) -> Family | None:
    """The proposals that a prior can have; None if there are none, so that it stays as it is."""
    if _why_never(fn) is not None:
        return None
    family = finite_family(fn) or count_family(fn, components) or circular_family(fn, components)
    return family or real_family(fn, components)


def why_none(fn: Distribution) -> str | None:
    """Why a prior has no proposals, in words that complete "it keeps its prior, as"; None if it has some."""
    if family_of(fn, components=1) is not None:
        return None
    if is_categorical(fn):
        return f"its Categorical distribution has one category, or more than {MAX_CATEGORIES:,}"
    return _why_never(fn) or f"there are no proposals on {describe_support(elementwise(fn))}"


def _why_never(fn: Any) -> str | None:
    if isinstance(base_distribution(fn), dist.Delta):
        return "its distribution is a Delta"
    if isinstance(base_distribution(fn), dist.Unit):
        return "it is a factor, which has no values"
    if isinstance(base_distribution(fn), dist.ImproperUniform):
        return "its distribution is improper, and cannot be drawn from"
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    if isinstance(fn, dist.MaskedDistribution):
        return "its distribution is masked inside of to_event()"
    return "its distribution has no support" if fn.support is None else None
