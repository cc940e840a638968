"""Sites of one program's trace."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from rws_jax.core.numpyro_internals import mask_of

Site = dict[str, Any]
Trace = dict[str, Site]


def latent_sites(run: Trace) -> Trace:
    """The unobserved sample sites of a trace."""
    return {name: site for name, site in run.items() if site["type"] == "sample" and not site["is_observed"]}


def param_sites(run: Trace) -> Trace:
    """The param sites of a trace."""
    return {name: site for name, site in run.items() if site["type"] == "param"}


def trained_sites(params: Trace) -> Trace:
    """Param sites that hold arrays: those of modules whose parameters are all random hold shapes alone."""
    return {name: site for name, site in params.items() if jax.tree.leaves(site["value"])}


def plate_size(runs: Iterable[Trace], frame: Any) -> int:
    """The full size of a plate; its `frame` knows the subsample only. Plates inside scan leave no record."""
    return next((run[frame.name]["args"][0] for run in runs if frame.name in run), frame.size)


def base_distribution(fn: Any) -> Any:
    """The distribution inside of the expansions, masks and event dimensions put around it."""
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


def with_batch_shape(fn: Any) -> Any:
    """The same distribution, of the batch shape that its parameters have.

    One that was made by `jax.vmap` has the batch shape of a single one, and would draw one number for all its elements.
    """
    if isinstance(fn, dist.ExpandedDistribution) or not isinstance(fn, dist.Distribution):
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
    shape = jnp.broadcast_shapes(*shapes)
    return fn if shape == fn.batch_shape else fn.expand(shape)


def site_shape(site: Site) -> tuple[int, ...]:
    """The shape that a draw of a sample site has."""
    return (*site["kwargs"].get("sample_shape", ()), *site["fn"].shape())
