"""Sites of one program's trace."""

from collections.abc import Iterable
from typing import Any

import numpyro.distributions as dist

Site = dict[str, Any]
Trace = dict[str, Site]


def latent_sites(run: Trace) -> Trace:
    """The unobserved sample sites of a trace."""
    return {name: site for name, site in run.items() if site["type"] == "sample" and not site["is_observed"]}


def param_sites(run: Trace) -> Trace:
    """The param sites of a trace."""
    return {name: site for name, site in run.items() if site["type"] == "param"}


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


def base_distribution(fn: Any) -> Any:
    """The distribution inside of the expansions, masks and event dimensions put around it."""
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn
