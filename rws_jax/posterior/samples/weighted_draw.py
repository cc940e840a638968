"""What one particle computes after training: a draw of the latents, and its log-weight."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from rws_jax.core.sites import Site, Trace, latent_sites
from rws_jax.estimators.wake import WeighedSteps, Weighing
from rws_jax.estimators.weights import PerParticle
from rws_jax.execution.ragged import Ragged
from rws_jax.posterior.evidence_particle import weighed
from rws_jax.programs.density import Units
from rws_jax.programs.program import Index, Programs
from rws_jax.programs.run import sample

Dims = tuple[str | None, ...]  # the plate that each axis of a value belongs to


@partial(
    jax.tree_util.register_dataclass, data_fields=["log_weights", "latents", "steps"], meta_fields=["units", "scale"]
)
@dataclass(frozen=True)
class WeightedDraw:
    """Latents and log-weights of one particle, or of all of them side by side."""

    log_weights: PerParticle
    latents: Ragged  # kinds are `Dims`
    units: tuple[str, ...]  # the plate that each axis of the log-weights of one particle belongs to
    scale: float
    steps: WeighedSteps | None = None


@dataclass(frozen=True)
class WeightedDrawParticle:
    """Draw the guide, or a defensive mixture, and weigh the draw by the model."""

    wake: Weighing

    def __call__(self, programs: Programs, index: Index) -> WeightedDraw:
        """Draw and weigh."""
        draws, log_weights, units, model_run, steps = weighed(self.wake, programs, index)
        sites = {name: site for name, site in latent_sites(model_run).items() if name in draws.latents}
        latents = Ragged.of({name: jnp.asarray(draws.latents[name]) for name in sites}, dims_of(sites))
        return WeightedDraw(log_weights, latents, _names_of(units, model_run), units.scale, steps)


@dataclass(frozen=True)
class GuideDrawParticle:
    """Draw the guide, of which nothing is weighed."""

    def __call__(self, programs: Programs, index: Index) -> Ragged:
        """Draw."""
        sites = latent_sites(sample(programs.guide, programs.arguments, index))
        own = {name: site for name, site in sites.items() if not site["infer"].get("is_auxiliary")}
        return Ragged.of({name: jnp.asarray(site["value"]) for name, site in own.items()}, dims_of(own))


def dims_of(sites: Trace) -> dict[str, Dims]:
    """The plate of each axis of each site; None for all other axes, those of events among them."""
    return {name: _dims(site, jnp.ndim(site["value"])) for name, site in sites.items()}


def _dims(site: Site, ndim: int) -> Dims:
    num_batch_dims = ndim - site["fn"].event_dim
    plates = {num_batch_dims + frame.dim: frame.name for frame in site["cond_indep_stack"]}
    return tuple(plates.get(axis) for axis in range(ndim))


def _names_of(units: Units, model_run: Trace) -> tuple[str, ...]:
    """The plates that units are the elements of; all sites are in them."""
    sites = (site for site in model_run.values() if site["type"] == "sample" and not site.get("is_constant"))
    frames: Iterable = next((site["cond_indep_stack"] for site in sites), ())
    names = {frame.dim: frame.name for frame in frames}
    return tuple(names[dim] for dim, _ in units.sizes)
