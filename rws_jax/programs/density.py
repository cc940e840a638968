"""From traces to log densities: masks, scales, and the independent units that log-weights belong to.

Knows distributions and traces. Knows nothing of particles: executors run them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions import Distribution

from rws_jax.checks.units import check_subsampling
from rws_jax.core.log_probs import exact
from rws_jax.core.site_functions import at_site
from rws_jax.core.sites import Site, Trace, latent_sites, plate_sizes, sample_sites
from rws_jax.core.supports import feasible, in_support, is_all_known

# Which distribution the value of a site was drawn from; None where that is not known.
ProposalDists = Callable[[Site], Distribution | None]


def own_dists(site: Site) -> Distribution:
    """Latents were drawn from the program's own distributions."""
    return site["fn"]


def dists_of(run: Trace) -> ProposalDists:
    """Latents were drawn from the distributions of another run."""
    return lambda site: run[site["name"]]["fn"]


@dataclass(frozen=True)
class Units:
    """The plates common to all sample sites of model and guide: their elements are independent units.

    Each unit has a log-weight of its own. With no common plate everything is one unit. This is the rule of NumPyro's
    `RenyiELBO`.
    """

    sizes: tuple[tuple[int, int], ...]  # dim and size of each plate; dims are negative, as in `numpyro.plate`
    scale: float  # product of size / subsample size over these plates
    frames: frozenset[Any] = field(default=frozenset(), compare=False)  # of these plates, in `cond_indep_stack`

    @classmethod
    def of(cls, *runs: Trace) -> "Units":
        """Infer the units; a subsampled plate that is not among them is an error."""
        sites = [site for run in runs for site in run.values() if site["type"] == "sample"]
        plates = [plate_sizes(site) for site in sites if not site.get("is_constant")]
        common = set.intersection(*map(set, plates)) if plates else set()
        check_subsampling(runs, set().union(*plates) - common)
        scale = math.prod((plates[0][frame] / frame.size for frame in common), start=1.0)
        return cls(tuple(sorted((frame.dim, frame.size) for frame in common)), scale, frozenset(common))

    @property
    def shape(self) -> tuple[int, ...]:
        """One axis for each common plate, ``units`` in shapes of log densities."""
        return tuple(size for _, size in self.sizes)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """One dim for each unit plate where its sites have it, and dims of one between them."""
        sizes = dict(self.sizes)
        return tuple(sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0))

    def log_density(self, run: Trace, latents: dict[str, jax.Array], proposal_dists: ProposalDists) -> jax.Array:
        """Sum the log densities of all sites for each unit, the scale of the units' own subsampling taken out.

        Args:
          run: a trace, possibly run at `feasible` values.
          latents: the values to score latent sites at.
          proposal_dists: which distributions these were drawn from.

        Returns:
          Log density in nats, shape ``units``.
        """
        total = jnp.zeros(self.shape)  # there may be no site
        for name, site in sample_sites(run).items():
            if self.sizes or self._is_scaled(site) or site.get("is_constant"):
                total = total + self._log_density(name, site, latents, proposal_dists)
            else:
                total = _with_log_density(total, site["fn"], *_value_and_source(name, site, latents, proposal_dists))
        return total

    def log_densities(
        self, run: Trace, latents: dict[str, jax.Array], proposal_dists: ProposalDists
    ) -> dict[str, jax.Array]:
        """The same of each site."""
        sites = sample_sites(run).items()
        return {name: self._log_density(name, site, latents, proposal_dists) for name, site in sites}

    def _log_density(
        self, name: str, site: Site, latents: dict[str, jax.Array], proposal_dists: ProposalDists
    ) -> jax.Array:
        log_prob = log_density(site["fn"], *_value_and_source(name, site, latents, proposal_dists))
        if self._is_scaled(site):
            scale = 1.0 if site["scale"] is None else site["scale"]
            log_prob = log_prob * (scale / self.scale)
        return self.sum_of(site, log_prob)

    def _is_scaled(self, site: Site) -> bool:
        return site["scale"] is not None or self.scale != 1.0

    def log_proposal(self, run: Trace, latents: dict[str, jax.Array], proposal_dists: ProposalDists) -> jax.Array:
        """Sum the log densities of latent sites alone, free of scales: what a run that draws them draws them from."""
        log_probs = [
            log_density(site["fn"], latents[name], proposal_dists(site)) for name, site in latent_sites(run).items()
        ]
        return sum(map(self.sum, log_probs), jnp.zeros(()))

    def sum(self, log_prob: Any) -> Any:
        """Sum over all but the units, an array of the batch shape of some site."""
        dims = {dim for dim, _ in self.sizes}
        # A sum in half precision would be wrong by tenths of a nat.
        log_prob = log_prob.astype(jnp.promote_types(log_prob.dtype, jnp.float32))
        return log_prob.sum(axis=tuple(axis for axis in range(log_prob.ndim) if axis - log_prob.ndim not in dims))

    def sum_of(self, site: Site, log_prob: Any) -> Any:
        """The same of a site, which has all unit plates unless it is a constant.

        A constant adds the same to all weights of a unit, whatever plates it is in. Where it has an element for each
        unit that is the unit's own, and otherwise each unit has an equal share.
        """
        if not site.get("is_constant"):
            return self.sum(log_prob)
        own = {frame.dim for frame in self.frames & set(site["cond_indep_stack"])}
        dims = [dim for dim, _ in self.sizes]
        share = 1.0 / math.prod(size for dim, size in self.sizes if dim not in own)
        summed = share * Units(tuple((dim, size) for dim, size in self.sizes if dim in own), 1.0).sum(log_prob)
        return summed.reshape([dict(self.sizes)[dim] if dim in own else 1 for dim in dims])

    def beside(self, of_units: Any, site: Site) -> Any:
        """An array with a number for each unit, in the shape that broadcasts against the value of a site."""
        event_dim, num_dims = site["fn"].event_dim, jnp.ndim(site["value"])
        batch_shape = (1,) * (num_dims - len(self.batch_shape) - event_dim) + self.batch_shape
        return of_units.reshape(batch_shape + (1,) * event_dim)


def _value_and_source(
    name: str, site: Site, latents: dict[str, jax.Array], proposal_dists: ProposalDists
) -> tuple[Any, Distribution | None]:
    """The value to score a site at, and the distribution that it was drawn from."""
    return (latents[name], proposal_dists(site)) if name in latents else (site["value"], site["fn"])


@at_site
def _with_log_density(total: Any, fn: Distribution, value: Any, proposal_dist: Distribution | None) -> Any:
    """A total with the log density of a site added, where all is one unit: one function, as it is one call."""
    return total + Units((), 1.0).sum(log_density(fn, value, proposal_dist))


@at_site
def log_density(fn: Distribution, value: Any, proposal_dist: Distribution | None) -> Any:
    """``fn.log_prob(value)``, but ``-inf`` with zero gradient, never a number or NaN, outside of the support."""
    inside, fn = in_support(fn, value, proposal_dist), exact(fn)
    with numpyro.validation_enabled(False):  # its test of the support would overrule the trust of this one
        if inside is None or is_all_known(inside):
            return fn.log_prob(value)
        # Double-where: log_prob is evaluated inside the support only, so that no NaN can come back as a gradient.
        return jnp.where(inside, fn.log_prob(feasible(fn, value, proposal_dist)), -jnp.inf)
