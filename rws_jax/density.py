"""From traces to log densities: supports, masks, scales, and the independent units that log-weights belong to.

Knows distributions and traces. Knows nothing of particles: they are mapped over further up.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import Distribution, constraints

from rws_jax import matching, sites
from rws_jax.sites import Trace


class Units(NamedTuple):
    """The plates common to all sample sites of model and guide: their elements are independent units.

    Each unit has a log-weight of its own. With no common plate everything is one unit. This is the rule of NumPyro's
    `RenyiELBO`.
    """

    dims: frozenset[int]  # negative, as in `numpyro.plate`
    scale: float  # product of size / subsample size over these plates

    @classmethod
    def of(cls, *runs: Trace) -> "Units":
        """Infer the units; a subsampled plate that is not among them is an error."""
        stacks = [set(site["cond_indep_stack"]) for run in runs for site in run.values() if site["type"] == "sample"]
        common = set.intersection(*stacks) if stacks else set()
        matching.check_subsampling(runs, set().union(*stacks) - common)
        scale = math.prod(sites.plate_size(runs, frame) / frame.size for frame in common)
        return cls(frozenset(frame.dim for frame in common), scale)

    def log_density(self, run: Trace, latents: dict[str, jax.Array], drawn_in: Trace) -> jax.Array:
        """Sum the log densities of all sites for each unit, the scale of the units' own subsampling taken out.

        Args:
          run: a trace, possibly run at `feasible` values.
          latents: the values to score latent sites at.
          drawn_in: the trace in which these were drawn, as far as it is known.

        Returns:
          Log density in nats, shape ``units``: one axis for each common plate.
        """
        total = jnp.zeros(())
        for name, site in run.items():
            if site["type"] == "sample":
                fn, value = site["fn"], latents.get(name, site["value"])
                drawn_from = drawn_in.get(name, {}).get("fn") if name in latents else fn
                log_prob = log_density(fn, value, drawn_from)
                if site["scale"] is not None:
                    log_prob = log_prob * (site["scale"] / self.scale)
                inner = tuple(axis for axis in range(log_prob.ndim) if axis - log_prob.ndim not in self.dims)
                total = total + jnp.sum(log_prob, axis=inner)
        return total


def log_density(fn: Distribution, value: Any, drawn_from: Distribution | None) -> Any:
    """``fn.log_prob(value)``, but ``-inf`` with zero gradient, never a number or NaN, outside of the support."""
    inside = _in_support(fn, value, drawn_from)
    with numpyro.validation_enabled(False):  # its test of the support would overrule the trust of this one
        if inside is None:
            return fn.log_prob(value)
        # Double-where: log_prob is evaluated inside the support only, so that no NaN can come back as a gradient.
        return jnp.where(inside, fn.log_prob(feasible(fn, value, drawn_from)), -jnp.inf)


def feasible(fn: Distribution, value: Any, drawn_from: Distribution | None) -> jax.Array:
    """`value`, with events outside of the support of `fn` replaced by some point inside of it."""
    inside = _in_support(fn, value, drawn_from)
    if inside is None:
        return value
    inside = jnp.reshape(inside, jnp.shape(inside) + (1,) * fn.event_dim)
    support: Any = fn.support
    return jnp.where(inside, value, support.feasible_like(value))


def _in_support(fn: Distribution, value: Any, drawn_from: Distribution | None) -> Any:
    """Whether each event lies in the support; masked events count as inside. None: taken on trust."""
    if isinstance(fn, dist.MaskedDistribution):
        inside = _in_support(fn.base_dist, value, drawn_from)
        return None if inside is None else inside | jnp.logical_not(fn._mask)
    if isinstance(fn, dist.ExpandedDistribution):
        return _in_support(fn.base_dist, value, drawn_from)
    if isinstance(fn, dist.Independent):
        inside = _in_support(fn.base_dist, value, drawn_from)
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
    inside = _in_support(fn, value, fn) if fixed else None
    return 0 if inside is None else jnp.sum(jnp.logical_not(inside))


_FIXED_SUPPORTS = [
    constraints.real,
    constraints.positive,
    constraints.nonnegative,
    constraints.unit_interval,
    constraints.nonnegative_integer,
    constraints.positive_integer,
]
