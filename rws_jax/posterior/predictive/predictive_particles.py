"""What a model computes at one posterior sample: data drawn anew, densities of real data, and what these are."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from rws_jax.checks.predictive import check_kept, check_minibatch
from rws_jax.core.sites import Site, Trace
from rws_jax.execution.ragged import Ragged
from rws_jax.posterior.samples.weighted_draw import Dims, dims_of
from rws_jax.programs.density import log_density
from rws_jax.programs.predict import Kept, is_factor, predict
from rws_jax.programs.program import Arguments, Index, Programs


@dataclass(frozen=True)
class PredictiveParticle:
    """Draw all that has no posterior sample, data among it."""

    def __call__(self, programs: Programs, index: Index) -> Ragged:
        """Run the model at the posterior sample of this index, the last argument."""
        run, kept = _run(programs, index, draws_data=True)
        check_minibatch(run, run.keys() & kept.values.keys())
        drawn = {n: site for n, site in run.items() if site["type"] == "sample" and n not in kept.values}
        return _ragged(
            {n: s for n, s in drawn.items() if not (s.get("is_constant") or is_factor(s))} | _deterministic(run)
        )


@partial(jax.tree_util.register_dataclass, data_fields=["log_likelihood", "deterministic"], meta_fields=[])
@dataclass(frozen=True)
class Scores:
    """What real data are worth at one posterior sample, or at all of them side by side."""

    log_likelihood: Ragged  # in nats, for each event of each observed site
    deterministic: Ragged


@dataclass(frozen=True)
class ScoreParticle:
    """Log densities of real data, and what else the model records."""

    def __call__(self, programs: Programs, index: Index) -> Scores:
        """Run the model at the posterior sample of this index, the last argument."""
        run, _ = _run(programs, index, draws_data=False)
        sites = _observed(run)
        check_minibatch(run, sites)
        log_probs = {name: log_density(site["fn"], site["value"], None) for name, site in sites.items()}
        kinds = dims_of(sites)
        kinds = {name: kinds[name][: jnp.ndim(log_prob)] for name, log_prob in log_probs.items()}
        return Scores(Ragged.of(log_probs, kinds), _ragged(_deterministic(run)))


@partial(jax.tree_util.register_dataclass, data_fields=["data", "indices"], meta_fields=[])
@dataclass(frozen=True)
class Real:
    """What is observed in reality, and the indices of the plates it is in; not of those that are drawn at random."""

    data: Ragged
    indices: Ragged


@dataclass(frozen=True)
class RealParticle:
    """Real data, which may be known only once the model runs."""

    def __call__(self, programs: Programs, index: Index) -> Real:
        """Run the model at the posterior sample of this index, the last argument."""
        run, _ = _run(programs, index, draws_data=False)
        plates = {name: site for name, site in run.items() if site["type"] == "plate" and not site["is_random"]}
        plates = {name: jnp.asarray(site["value"]) for name, site in plates.items()}
        return Real(_ragged(_observed(run)), Ragged.of(plates, dict.fromkeys(plates, ())))


def _run(programs: Programs, index: Index, *, draws_data: bool) -> tuple[Trace, Kept]:
    *args, samples = programs.arguments.args
    kept: Kept = jax.tree.map(lambda leaf: leaf[index.particle], samples)
    run = predict(programs.model, Arguments(tuple(args), programs.arguments.kwargs), index, kept, draws_data=draws_data)
    shapes = {name: jnp.shape(value) for name, value in kept.values.items()}
    check_kept(run, shapes, bool(kept.present), draws_data)
    return run, kept


def _observed(run: Trace) -> Trace:
    sites = {name: site for name, site in run.items() if site["type"] == "sample" and site["is_observed"]}
    return {name: site for name, site in sites.items() if not (site.get("is_constant") or is_factor(site))}


def _deterministic(run: Trace) -> Trace:
    return {name: site for name, site in run.items() if site["type"] == "deterministic"}


def _ragged(sites: Trace) -> Ragged:
    drawn = {name: site for name, site in sites.items() if site["type"] == "sample"}
    dims = dims_of(drawn) | {name: _dims_by_size(site) for name, site in sites.items() if name not in drawn}
    return Ragged.of({name: jnp.asarray(site["value"]) for name, site in sites.items()}, dict(dims))


def _dims_by_size(site: Site) -> Dims:
    """The plate of each axis of a deterministic site, whose events have as many axes as leave plates their sizes."""
    shape = jnp.shape(site["value"])
    for event_dim in range(len(shape) + 1):
        plates = {len(shape) - event_dim + frame.dim: frame for frame in site["cond_indep_stack"]}
        if all(axis >= 0 and shape[axis] == frame.size for axis, frame in plates.items()):
            return tuple(plates[axis].name if axis in plates else None for axis in range(len(shape)))
    return (None,) * len(shape)
