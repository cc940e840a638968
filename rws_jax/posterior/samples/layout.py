"""Axes of units: brought together in front for computations that go unit by unit, and back to where sites have them."""

import math

import jax
import jax.numpy as jnp

from rws_jax.posterior.samples.weighted_draw import Dims


def by_unit(values: jax.Array, dims: Dims, units: tuple[str, ...]) -> jax.Array:
    """All units as one axis after that of particles.

    Args:
      values: shape ``(particles, *shape)``.
      dims: the name of each axis of `shape`.
      units: the names of the axes of units, all of them in `dims`.

    Returns:
      Shape ``(particles, units, *rest)``, where `rest` are the other axes in order.
    """
    moved = jnp.moveaxis(values, [1 + dims.index(unit) for unit in units], range(1, 1 + len(units)))
    num_units = math.prod(moved.shape[1 : 1 + len(units)])
    return moved.reshape(len(values), num_units, *moved.shape[1 + len(units) :])


def in_place(
    values: jax.Array, dims: Dims, units: tuple[str, ...], unit_shape: tuple[int, ...], num_leading: int
) -> jax.Array:
    """The way back.

    Args:
      values: shape ``(*leading, units, *rest)``.
      dims: the name of each axis of `shape`.
      units: the names of the axes of units.
      unit_shape: their sizes.
      num_leading: how many axes come first.

    Returns:
      Shape ``(*leading, *shape)``.
    """
    apart = values.reshape(*values.shape[:num_leading], *unit_shape, *values.shape[num_leading + 1 :])
    here = range(num_leading, num_leading + len(units))
    return jnp.moveaxis(apart, here, [num_leading + dims.index(unit) for unit in units])


def beside(per_unit: jax.Array, values: jax.Array) -> jax.Array:
    """An array of shape ``(particles, units)``, to be broadcast against one of shape ``(particles, units, *rest)``."""
    return per_unit.reshape(*per_unit.shape, *(1,) * (values.ndim - 2))
