"""Standard units: the shift and scale that bring numbers of dreams to about one."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rws_jax.guides.networks import Tree


def rows(value: jax.Array, num_axes: int) -> jax.Array:
    """The first axes as rows, and all numbers of the others in one."""
    num_rows = math.prod(value.shape[:num_axes])
    return value.reshape(num_rows, math.prod(value.shape[num_axes:]))


@jax.jit
def units_of(values: Sequence[jax.Array]) -> Tree:
    """The median of each number, and its spread: of the middle two thirds or, where these do not differ, of all."""
    value = jnp.concatenate(list(values))
    value = jnp.where(jnp.isfinite(value), value, jnp.nan)
    low, median, high = jnp.nan_to_num(jnp.nanquantile(value, jnp.array([0.16, 0.5, 0.84]), axis=0))
    spread, deviation = (high - low) / 2, jnp.nan_to_num(jnp.nanstd(value, axis=0))
    tiny = 1e-6 * (1.0 + jnp.abs(median))
    scale = jnp.where(spread > tiny, spread, jnp.where(deviation > tiny, deviation, 1.0))
    return {"shift": median, "scale": scale}
