"""Which elements of a value count: those that no mask of its distribution leaves out."""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from rws_jax.core.numpyro_internals import mask_of


def mask_of_elements(fn: Any) -> Any:
    """True for what counts, an array that broadcasts against the value; True or False where all is alike.

    By `numpyro.handlers.mask` or ``fn.mask(...)``, inside or outside of expansions and event dims.
    """
    if isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        return mask_of_elements(fn.base_dist)
    if not isinstance(fn, dist.MaskedDistribution):
        return True
    inner, own = mask_of_elements(fn.base_dist), mask_of(fn)
    if isinstance(own, bool):
        return own and inner
    return inner & jnp.reshape(own, jnp.shape(own) + (1,) * fn.event_dim)
