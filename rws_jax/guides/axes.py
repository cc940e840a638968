"""Which axis of an argument belongs to which plate or scan, and how arrays are laid along the plates of a site."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rws_jax.core.errors import fail
from rws_jax.core.numpyro_internals import ActivePlate

SCAN = "scan"  # the name of the axis that a scan runs along

Names = frozenset[str]  # the plates, or the scan, that one axis of an argument belongs to


class Leaf(NamedTuple):
    """An argument, or what has been made of one: an array whose first axes have names."""

    name: str
    axes: tuple[Names, ...]
    value: jax.Array  # (*axes, features)


def named_axes(shape: tuple[int, ...], frames: Iterable[Sequence[tuple[str, tuple[int, ...]]]]) -> tuple[Names, ...]:
    """Names of the first axes of an argument, as far as plates or scans have their sizes.

    Args:
      shape: that of the argument.
      frames: for each place of a program the plates and scans around it, outermost first, with their possible sizes.
    """
    found: list[set[str]] = []
    for around in frames:
        free = list(around)
        for axis, size in enumerate(shape):
            match = next((frame for frame in free if size in frame[1]), None)
            if match is None or axis > len(found):
                break
            free.remove(match)
            found += [set()] if axis == len(found) else []
            found[axis].add(match[0])
    return tuple(frozenset(names) for names in found)


def described(name: str, axes: tuple[Names, ...]) -> str:
    """The key of an argument among parameters, which says what its axes are."""
    return f"{name} over {', '.join('|'.join(sorted(names)) for names in axes)}" if axes else name


def parsed(key: str) -> tuple[str, tuple[Names, ...]]:
    """An argument and its axes, from such a key."""
    name, _, axes = key.partition(" over ")
    return name, tuple(frozenset(names.split("|")) for names in axes.split(", ")) if axes else ()


class Laid(NamedTuple):
    """A leaf along the plates of a site."""

    value: jax.Array  # (*batch, *pooled, features)
    pooled: tuple[Names, ...]  # its axes that no plate of the site has


def laid(leaf: Leaf, plates: Sequence[ActivePlate], num_dims: int) -> Laid:
    """Lay a leaf along the batch dims of a site; what it has beyond these comes behind them."""
    value, dims = leaf.value, {}
    free = sorted(plates, key=lambda plate: -plate.dim)
    for axis in reversed(range(len(leaf.axes))):
        plate = next((plate for plate in free if plate.name in leaf.axes[axis]), None)
        if plate is not None:
            free.remove(plate)
            dims[axis] = num_dims + plate.dim
            value = _of_minibatch(leaf.name, value, axis, plate)
    rest = [axis for axis in range(len(leaf.axes)) if axis not in dims]
    order = sorted(dims, key=lambda axis: dims[axis])
    moved = jnp.transpose(value, (*order, *rest, value.ndim - 1))
    sizes = [1] * num_dims
    for axis in order:
        sizes[dims[axis]] = value.shape[axis]
    return Laid(moved.reshape(*sizes, *moved.shape[len(order) :]), tuple(leaf.axes[axis] for axis in rest))


def _of_minibatch(name: str, value: jax.Array, axis: int, plate: ActivePlate) -> jax.Array:
    """The rows of a plate's minibatch, unless the argument is one already."""
    num = len(plate.indices)
    if value.shape[axis] == num:
        return value
    if value.shape[axis] == plate.size:
        return jnp.take(value, plate.indices, axis=axis)
    fail(
        ValueError,
        f"argument {name!r} has other rows than plate {plate.name!r} has elements",
        expected=f"{num} rows along axis {axis}" + (f", or {plate.size}" if plate.size != num else ""),
        found=f"{value.shape[axis]}",
        hint="pass the data that belong to the plate; compile_guide(..., data_plates=...) says which axis is a plate's",
    )


def own_dims(batch_shape: tuple[int, ...], of_data: Iterable[int]) -> list[int]:
    """Batch dims, from the left, whose elements are not those of data: each has outputs of its own.

    Args:
      batch_shape: that of a site.
      of_data: dims, counted from the right and negative, of the plates along which there are data.
    """
    known = {len(batch_shape) + dim for dim in of_data}
    return [dim for dim in range(len(batch_shape)) if dim not in known and batch_shape[dim] > 1]


def gathered(value: jax.Array, dims: Sequence[int], num_dims: int) -> jax.Array:
    """``(*batch, n)`` -> the same with the batch dims `dims` of size 1, and their elements among the last numbers."""
    moved = jnp.moveaxis(value, dims, range(num_dims - len(dims), num_dims))
    kept = [size for dim, size in enumerate(value.shape[:num_dims]) if dim not in dims]
    sizes = [1 if dim in dims else value.shape[dim] for dim in range(num_dims)]
    return moved.reshape(*kept, -1).reshape(*sizes, -1)


def scattered(value: Any, dims: Sequence[int], batch_shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `gathered`, broadcast to the batch shape."""
    num_dims = len(batch_shape)
    own = [batch_shape[dim] for dim in dims]
    kept = [size for dim, size in enumerate(value.shape[:-1]) if dim not in dims]
    split = value.reshape(*kept, *own, -1)
    moved = jnp.moveaxis(split, range(num_dims - len(dims), num_dims), dims)
    return jnp.broadcast_to(moved, (*batch_shape, moved.shape[-1]))
