"""From traces to log densities: masks, scales, and the independent units that log-weights belong to.

Knows distributions and traces. Knows nothing of particles: they are mapped over further up.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions import Distribution

from rws_jax import matching, sites
from rws_jax.sites import Site, Trace
from rws_jax.supports import feasible, in_support

DrawnFrom = Callable[[Site], Distribution | None]  # which distribution a value was drawn from; None: not known


def itself(site: Site) -> Distribution:
    """Latents were drawn from the program's own distributions."""
    return site["fn"]


def those_of(run: Trace) -> DrawnFrom:
    """Latents were drawn from the distributions of another run."""
    return lambda site: run[site["name"]]["fn"]


class Units(NamedTuple):
    """The plates common to all sample sites of model and guide: their elements are independent units.

    Each unit has a log-weight of its own. With no common plate everything is one unit. This is the rule of NumPyro's
    `RenyiELBO`.
    """

    sizes: dict[int, int]  # by dim, which is negative as in `numpyro.plate`
    scale: float  # product of size / subsample size over these plates

    @classmethod
    def of(cls, *runs: Trace) -> "Units":
        """Infer the units; a subsampled plate that is not among them is an error."""
        stacks = [set(site["cond_indep_stack"]) for run in runs for site in run.values() if site["type"] == "sample"]
        common = set.intersection(*stacks) if stacks else set()
        matching.check_subsampling(runs, set().union(*stacks) - common)
        scale = math.prod(sites.plate_size(runs, frame) / frame.size for frame in common)
        return cls({frame.dim: frame.size for frame in common}, scale)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """One dim for each unit plate where its sites have it, and dims of one between them."""
        return tuple(self.sizes.get(dim, 1) for dim in range(min(self.sizes, default=0), 0))

    def log_density(self, run: Trace, latents: dict[str, jax.Array], drawn_from: DrawnFrom) -> jax.Array:
        """Sum the log densities of all sites for each unit, the scale of the units' own subsampling taken out.

        Args:
          run: a trace, possibly run at `feasible` values.
          latents: the values to score latent sites at.
          drawn_from: which distributions these were drawn from.

        Returns:
          Log density in nats, shape ``units``: one axis for each common plate.
        """
        total = jnp.zeros([self.sizes[dim] for dim in sorted(self.sizes)])  # there may be no site
        for name, site in run.items():
            if site["type"] == "sample":
                value, source = (latents[name], drawn_from(site)) if name in latents else (site["value"], site["fn"])
                log_prob = log_density(site["fn"], value, source)
                if site["scale"] is not None:
                    log_prob = log_prob * (site["scale"] / self.scale)
                total = total + self._sum(log_prob)
        return total

    def log_proposal(self, run: Trace, latents: dict[str, jax.Array], drawn_from: DrawnFrom) -> jax.Array:
        """Sum the log densities of latent sites alone, free of scales: what a run that draws them draws them from."""
        log_probs = [
            log_density(site["fn"], latents[name], drawn_from(site)) for name, site in sites.latent_sites(run).items()
        ]
        return sum(map(self._sum, log_probs), jnp.zeros(()))

    def joint(self) -> "Units":
        """All of it as one unit."""
        return self._replace(sizes={})

    def _sum(self, log_prob: jax.Array) -> jax.Array:
        inner = tuple(axis for axis in range(log_prob.ndim) if axis - log_prob.ndim not in self.sizes)
        return jnp.sum(log_prob, axis=inner)


def log_density(fn: Distribution, value: Any, drawn_from: Distribution | None) -> Any:
    """``fn.log_prob(value)``, but ``-inf`` with zero gradient, never a number or NaN, outside of the support."""
    inside = in_support(fn, value, drawn_from)
    with numpyro.validation_enabled(False):  # its test of the support would overrule the trust of this one
        if inside is None:
            return fn.log_prob(value)
        # Double-where: log_prob is evaluated inside the support only, so that no NaN can come back as a gradient.
        return jnp.where(inside, fn.log_prob(feasible(fn, value, drawn_from)), -jnp.inf)
