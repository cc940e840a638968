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


def plate_size(runs: Iterable[Trace], frame: Any) -> int:
    """The full size of a plate; its `frame` knows the subsample only. Plates inside scan leave no record."""
    return next((run[frame.name]["args"][0] for run in runs if frame.name in run), frame.size)


def base_distribution(fn: Any) -> Any:
    """The distribution inside of the expansions, masks and event dimensions put around it."""
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn
