"""What a dream has in the place of a real value: numbers of the same type, and the real ones where the model masks."""

from typing import Any

import jax
import jax.numpy as jnp

from rws_jax.checks import dreams
from rws_jax.core.dependence import in_part
from rws_jax.core.sites import Site
from rws_jax.core.supports import fits, mask_of_values


def stand_in(site: Site, dreamt: jax.Array, real: Any) -> jax.Array:
    """Dreamt values of an observed site in the form of real ones.

    Numbers get the type of the real ones: a guide that negates bits or wraps around would compute something else. Where
    the model masks the site, the real ones stay: these are placeholders, and no data, which the guide sees as well.

    Args:
      site: what was dreamt, with its distribution.
      dreamt: values of this distribution.
      real: what they stand for.

    Raises:
      ValueError: if numbers that the distribution draws are none of that type.
    """
    real, dreamt = (value if hasattr(value, "dtype") else jnp.asarray(value) for value in (real, dreamt))
    dreamt, mask = _of_type(site, dreamt, real), mask_of_values(site["fn"])
    if mask is None:
        return dreamt
    dreams.check_placeholders(site["name"], dreamt, real)
    return in_part(jnp.broadcast_to(mask, dreamt.shape), dreamt, jnp.broadcast_to(real, dreamt.shape))


def _of_type(site: Site, dreamt: jax.Array, real: Any) -> jax.Array:
    dtype = jnp.result_type(real)
    is_weak = getattr(real, "weak_type", False) and jnp.issubdtype(dtype, jnp.integer)
    if is_weak or dtype == dreamt.dtype:  # Python's integers have no type of their own
        return dreamt
    if not fits(site["fn"], dreamt.dtype, dtype):
        dreams.fail_dtype(site, dreamt.dtype, dtype)
    return dreamt.astype(dtype)
