"""Sites of one program's trace."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from rws_jax.core.numpyro_internals import mask_of

Site = dict[str, Any]
Trace = dict[str, Site]


def latent_sites(run: Trace) -> Trace:
    """The unobserved sample sites of a trace."""
    return {name: site for name, site in run.items() if site["type"] == "sample" and not site["is_observed"]}


def sample_sites(run: Trace) -> Trace:
    """The sample sites of a trace, observed ones and latent ones."""
    return {name: site for name, site in run.items() if site["type"] == "sample"}


def factor_sites(run: Trace) -> Trace:
    """The sites of `numpyro.factor`."""
    return {
        name: site for name, site in sample_sites(run).items() if isinstance(base_distribution(site["fn"]), dist.Unit)
    }


def data_sites(run: Trace) -> Trace:
    """Observed sites whose values are data: neither constants nor factors."""
    observed = {name: site for name, site in sample_sites(run).items() if site["is_observed"]}
    return {name: observed[name] for name in observed if name not in constant_sites(run) | factor_sites(run)}


def param_sites(run: Trace) -> Trace:
    """The param sites that a program owns, which are trained with it."""
    return {name: site for name, site in run.items() if site["type"] == "param" and not site.get("is_held")}


def held_sites(run: Trace) -> Trace:
    """The param sites that a guide reads and the model owns: those within `rws_jax.programs.held.held`."""
    return {name: site for name, site in run.items() if site["type"] == "param" and site.get("is_held")}


def plate_sizes(site: Site) -> dict[Any, int]:
    """The full size of each plate that a sample site is in; the frames of `cond_indep_stack` know the subsample only.

    Plates inside of scan are full.
    """
    full = site.get("plate_sizes", {})
    return {frame: full.get(frame.dim, frame.size) for frame in site["cond_indep_stack"]}


def constant_sites(run: Trace) -> Trace:
    """Sample sites that were given by `numpyro.handlers.condition`, and whose log density no latent bears upon."""
    return {name: site for name, site in run.items() if site.get("is_constant")}


def mutable_sites(run: Trace) -> Trace:
    """The sites of a trace that hold mutable state."""
    return {name: site for name, site in run.items() if site["type"] == "mutable"}


def short_names(sites: Iterable[str]) -> dict[str, str]:
    """Names of sites without what `numpyro.handlers.scope` puts before them, where that leaves each its own."""
    shortened = {name: name.rsplit("/", 1)[-1] for name in sites}
    short = list(shortened.values())
    return {name: own if short.count(own) == 1 else name for name, own in shortened.items()}


def trained_sites(params: Trace) -> Trace:
    """Param sites that hold arrays: those of modules whose parameters are all random hold shapes alone."""
    return {name: site for name, site in params.items() if jax.tree.leaves(site["value"])}


def base_distribution(fn: Any) -> Any:
    """The distribution inside of the expansions, masks and event dimensions put around it."""
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


def with_batch_shape(fn: Any) -> Any:
    """The same distribution, of the batch shape that its parameters have.

    One that was made by `jax.vmap` has the batch shape of a single one, and would draw one number for all its elements.
    """
    if isinstance(fn, dist.ExpandedDistribution | dist.Delta) or not isinstance(fn, dist.Distribution):
        return fn
    if isinstance(fn, dist.Independent | dist.MaskedDistribution):
        base = with_batch_shape(fn.base_dist)
        if base is fn.base_dist:
            return fn
        is_masked = isinstance(fn, dist.MaskedDistribution)
        return base.mask(mask_of(fn)) if is_masked else base.to_event(fn.reinterpreted_batch_ndims)
    shapes = [fn.batch_shape]
    for name, constraint in fn.arg_constraints.items():
        value = vars(fn).get(name)  # what is computed from others, on demand, tells nothing more
        if value is not None:
            shape = jnp.shape(value)
            shapes.append(shape[: max(0, len(shape) - constraint.event_dim)])
    declared = jnp.broadcast_shapes(*shapes)
    if declared == fn.batch_shape:
        return fn
    # A class may declare parameters as those of one element. What counts is how many log densities one event has.
    event = jax.ShapeDtypeStruct(fn.shape(), jnp.result_type(float))
    try:
        with numpyro.validation_enabled(False), jax.numpy_rank_promotion("allow"):
            shape = jax.eval_shape(fn.log_prob, event).shape
    except Exception:  # as it has a batch, and one event is none
        shape = declared
    return fn if shape == fn.batch_shape else fn.expand(shape)


def site_shape(site: Site) -> tuple[int, ...]:
    """The shape that a draw of a sample site has."""
    return (*site["kwargs"].get("sample_shape", ()), *site["fn"].shape())


def event_shape(site: Site) -> tuple[int, ...]:
    """The shape of one event in the value of a sample site."""
    shape = jnp.shape(site["value"])
    return shape[len(shape) - site["fn"].event_dim :] if site["fn"].event_dim else ()


def num_elements(site: Site) -> int:
    """How many events the value of a sample site has."""
    return jnp.size(site["value"]) // max(1, math.prod(event_shape(site)))
