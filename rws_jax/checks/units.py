"""What plates and batches have to be for each datum to be a unit, with a weight of its own."""

import warnings
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from rws_jax.core.errors import fail
from rws_jax.core.numpyro_internals import comes_out_of_control_flow
from rws_jax.core.sites import Site, Trace, base_distribution, plate_sizes


def check_subsampling(runs: Iterable[Trace], frames: Iterable[Any]) -> None:
    """A plate that does not enclose every sample site must not be subsampled."""
    for frame in frames:
        sites = {n: s for run in runs for n, s in run.items() if s["type"] == "sample"}
        size = max(plate_sizes(site).get(frame, 0) for site in sites.values())
        if size > frame.size:
            outside = sorted(name for name, site in sites.items() if frame not in site["cond_indep_stack"])
            fail(
                ValueError,
                f"plate {frame.name!r} is subsampled ({frame.size} of {size}) but does not enclose every sample site",
                expected=f"all sample sites of model and guide inside plate {frame.name!r}",
                found=f"sites {outside} outside of it",
                hint="the weight of a latent shared by all data needs all data: drop subsample_size",
            )


def warn_of_one_unit(model_run: Trace, guide_run: Trace) -> None:
    """A batch outside of any plate is one unit, whose weights degenerate as it grows."""
    sites = [site for run in (model_run, guide_run) for site in run.values() if site["type"] == "sample"]
    sites = [site for site in sites if not isinstance(base_distribution(site["fn"]), dist.Unit)]
    sizes = {_size_of_batch(site) for site in sites}
    has_data = any(site["is_observed"] for site in sites)
    if has_data and len(sizes) == 1 and (num := sizes.pop()) > 1:
        warnings.warn(
            f"model and guide draw a batch of {num} outside of any plate. All of it is one unit: each particle has one"
            f" weight for {num} data, and the more data there are, the closer to 1 is the effective sample size. Put"
            f" both programs into numpyro.plate('data', {num}), or write them for one datum and pass data_axes=0; if"
            " this is one datum, say so by to_event().",
            stacklevel=2,
        )


def _size_of_batch(site: Site) -> int:
    """The first axis of log densities where it is neither a plate nor a step of scan; 1 if there is none."""
    num_dims = jnp.ndim(site["value"]) - site["fn"].event_dim
    if num_dims == 0 or site["cond_indep_stack"] or comes_out_of_control_flow(site):
        return 1
    return jnp.shape(site["value"])[0]
