"""A data axis: programs written for one datum, run on many. Every datum is a unit, with particles of its own."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from rws_jax.programs import Call
from rws_jax.validation import describe, fail


def each_datum(fn: Callable, calls: Iterable[Call | None], data_axes: Any, indices: Any) -> Any:
    """``fn(*calls, indices)``; with data axes of every datum, its units (axis 1) before those within it.

    Mapped over if particles are (see `rws_jax.particles`), else one by one.
    """
    calls = list(calls)
    if data_axes is None:
        return fn(*calls, indices)
    args = next(call.args for call in calls if call is not None)

    def of_datum(datum: Any, args: tuple) -> Any:
        return fn(*(call and call._replace(args=args, datum=datum) for call in calls), indices)

    number = num_data(args, data_axes)
    if isinstance(indices, jax.Array):
        return jax.vmap(of_datum, (0, data_axes), out_axes=1)(jnp.arange(number), args)
    return jax.tree.map(_stack, *(of_datum(datum, take(args, data_axes, datum)) for datum in range(number)))


def num_data(args: tuple, data_axes: Any) -> int:
    """Of arguments that agree on it."""
    if isinstance(data_axes, tuple) and len(data_axes) != len(args):
        fail(
            ValueError,
            "option 'data_axes' does not fit the arguments",
            expected=f"an axis, or None, for each of the {len(args)} positional arguments",
            found=f"data_axes={data_axes}",
            hint="as in_axes of jax.vmap; arguments passed by keyword are the same for all data",
        )
    sizes: dict[int, str] = {}
    for position, (arg, axis) in enumerate(zip(args, _by_argument(args, data_axes), strict=True)):
        for leaf in jax.tree.leaves(arg):
            if axis is None:
                continue
            shape = jnp.shape(leaf)
            if not -len(shape) <= axis < len(shape):
                fail(
                    ValueError,
                    f"option 'data_axes' asks for axis {axis} of argument {position}, which has no such axis",
                    expected="arrays with an axis of data",
                    found=describe(leaf),
                    hint="pass a tuple with None for what is the same for all data, data_axes=(0, None), say",
                )
            sizes[shape[axis]] = f"{shape[axis]} in argument {position}"
    if len(sizes) != 1:
        fail(
            ValueError,
            "option 'data_axes' finds no number of data that the arguments agree on",
            expected="one size of all axes of data",
            found=", ".join(sizes.values()) or "no argument with an axis of data",
            hint="every datum takes one row of each such argument, as in jax.vmap",
        )
    return next(iter(sizes))


def take(args: tuple, data_axes: Any, datum: Any) -> tuple:
    """The arguments of one datum."""
    row = lambda axis: lambda leaf: jnp.take(jnp.asarray(leaf), datum, axis=axis)
    return tuple(
        arg if axis is None else jax.tree.map(row(axis), arg)
        for arg, axis in zip(args, _by_argument(args, data_axes), strict=True)
    )


def first_datum(args: tuple, data_axes: Any) -> tuple[tuple, int | None]:
    """Its arguments and index, for programs to be looked at."""
    if data_axes is None:
        return args, None
    num_data(args, data_axes)
    return take(args, data_axes, 0), 0


def _by_argument(args: tuple, data_axes: Any) -> tuple[int | None, ...]:
    return data_axes if isinstance(data_axes, tuple) else (data_axes,) * len(args)


def _stack(*leaves: jax.Array) -> jax.Array:
    """Units within a datum are one where they are not the same for all data."""
    if len({leaf.shape for leaf in leaves}) > 1:
        leaves = tuple(jnp.sum(leaf, axis=tuple(range(1, leaf.ndim))) for leaf in leaves)
    return jnp.stack(leaves, axis=1)
