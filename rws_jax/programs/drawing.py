"""The value of one sample site: drawn, drawn as a constant, or as it was drawn before."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from numpyro.distributions import Distribution

from rws_jax.checks import matching
from rws_jax.core.draws import constant_distribution, may_round, moved_inside
from rws_jax.core.site_functions import are_sites_compiled, at_site
from rws_jax.core.sites import Site
from rws_jax.core.supports import feasible


def at_steps(value: Any, steps: tuple) -> Any:
    """The row of a value at these positions of scans."""
    for step in steps:
        value = value[step]
    return value


def drawn_before(
    role: str,
    site: Site,
    steps: tuple,
    latents: dict[str, jax.Array],
    proposal_dists: Callable[[Site], Distribution | None] | None,
) -> Any:
    """The value of a latent site that is replayed, at these positions of scans; arguments are those of `replay`."""
    matching.check_drawn(role, site, latents)
    value = at_steps(latents[site["name"]], steps)
    matching.check_shape(role, site, jnp.shape(value))
    if proposal_dists is None or is_put_back(site):
        return value
    return _feasible(site["fn"], value, proposal_dists(site))


def is_put_back(site: Site) -> bool:
    """Whether the handler of branching sites puts the drawn value in the place of a traced one."""
    return bool(
        are_sites_compiled()
        and site["infer"].get("branching")
        and any(isinstance(part, Tracer) for part in vars(site["fn"]).values())
    )


def drawn_inside(site: Site) -> Any:
    """The value that a site draws, off the border of its support; None where NumPyro draws it, or Python branches.

    The handler of branching sites draws what they draw.
    """
    is_free = site["value"] is None and not site["infer"].get("branching")
    site["is_drawn"] = is_free and (may_round(site["fn"]) or are_sites_compiled())
    return draw_site(site, site["kwargs"]["rng_key"]) if site["is_drawn"] else None


def draw_site(site: Site, rng_key: Any) -> Any:
    """Draw from the distribution of a site, off the border of its support where that is open."""
    site = site | {"kwargs": site["kwargs"] | {"rng_key": rng_key}}
    if not may_round(site["fn"]):
        return sampled(site)
    return _inside(site["fn"], sampled(site)) if _has_arguments(site) else _sampled_inside(site["fn"], rng_key)


def sampled(site: Site) -> Any:
    """Draw from the distribution of a site by its key, as NumPyro does."""
    fn, args, kwargs = site["fn"], site["args"], site["kwargs"]
    return fn(*args, **kwargs) if _has_arguments(site) else _sampled(fn, kwargs["rng_key"])


def _has_arguments(site: Site) -> bool:
    kwargs = site["kwargs"]
    return bool(site["args"] or kwargs.keys() - {"rng_key", "sample_shape"} or kwargs.get("sample_shape"))


@at_site
def _sampled(fn: Distribution, rng_key: Any) -> Any:
    return fn(rng_key=rng_key)


@at_site
def _sampled_inside(fn: Distribution, rng_key: Any) -> Any:
    drawn: Any = fn(rng_key=rng_key)
    return moved_inside(fn, drawn)


_inside = at_site(moved_inside)
_feasible = at_site(feasible)


def constant_draw(site: Site) -> Any:
    """What a latent site draws, or has been given, as a constant; its way of drawing is not differentiated."""
    if site["value"] is None:
        value = draw_site(site | {"fn": constant_distribution(site["fn"])}, site["kwargs"]["rng_key"])
    else:
        value = site["value"]
    return lax.stop_gradient(value)  # removes the gradient of whatever a distribution closes over, or a value given
