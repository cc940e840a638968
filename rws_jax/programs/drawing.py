"""How sample sites draw."""

from typing import Any

from numpyro.distributions import Distribution

from rws_jax.core.draws import may_round, moved_inside
from rws_jax.core.site_functions import are_sites_compiled, at_site
from rws_jax.core.sites import Site


def drawn_inside(site: Site) -> Any:
    """The value that a site draws, off the border of its support; None where NumPyro draws it, or Python branches.

    The handler of branching sites draws what they draw.
    """
    is_free = site["value"] is None and not site["infer"].get("branching")
    site["is_drawn"] = is_free and may_round(site["fn"])
    is_own = site["is_drawn"] or (is_free and are_sites_compiled())
    return draw_site(site, site["kwargs"]["rng_key"]) if is_own else None


def draw_site(site: Site, rng_key: Any) -> Any:
    """Draw from the distribution of a site, off the border of its support where that is open."""
    site = site | {"kwargs": site["kwargs"] | {"rng_key": rng_key}}
    return _inside(site["fn"], sampled(site)) if may_round(site["fn"]) else sampled(site)


def sampled(site: Site) -> Any:
    """Draw from the distribution of a site by its key, as NumPyro does."""
    fn, args, kwargs = site["fn"], site["args"], site["kwargs"]
    if args or kwargs.keys() - {"rng_key", "sample_shape"} or kwargs.get("sample_shape"):
        return fn(*args, **kwargs)
    return _sampled(fn, kwargs["rng_key"])


@at_site
def _sampled(fn: Distribution, rng_key: Any) -> Any:
    return fn(rng_key=rng_key)


_inside = at_site(moved_inside)
