"""Masks of latents, which have to be the same in model and guide."""

import jax.numpy as jnp
import numpy as np

from rws_jax.core.errors import fail
from rws_jax.core.sites import Site
from rws_jax.core.supports import mask_of_values
from rws_jax.core.trees import is_known


def check_same_mask(name: str, site: Site, other: Site, roles: tuple[str, str]) -> None:
    """A weight of what one program alone scores is no ratio of densities, and its bound may be above the evidence."""
    masks, shape = [mask_of_values(s["fn"]) for s in (site, other)], jnp.shape(site["value"])
    if not is_known(masks):
        if not any(mask is None for mask in masks):
            return  # both have one, and which elements are masked is not known
        found = ["no mask" if mask is None else "a mask" for mask in masks]
    else:
        masks = [np.broadcast_to(True if mask is None else np.asarray(mask), shape) for mask in masks]
        if np.array_equal(*masks):
            return
        found = [f"{mask.sum()} of {mask.size} elements count" for mask in masks]
    fail(
        ValueError,
        f"masks differ at latent site {name!r}",
        expected="the same elements masked in both programs: a masked element has no density in either",
        found=f"{found[0]} in the {roles[0]}, {found[1]} in the {roles[1]}",
        hint=f"put site {name!r} under the same numpyro.handlers.mask in both programs; a guide of what obs_mask leaves"
        " unobserved samples it under mask=~obs_mask; AutoNormal cannot, so write such a guide by hand",
    )
