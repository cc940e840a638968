"""A data axis: programs written for one datum, run on many. Every datum is a unit, with particles of its own."""

import jax
import jax.numpy as jnp

from rws_jax.core.errors import describe, fail
from rws_jax.programs.program import Programs

# As `in_axes` of `jax.vmap`: one axis, or one or None for each positional argument. None: programs are of all data.
DataAxes = int | tuple[int | None, ...] | None


def num_data(args: tuple, data_axes: DataAxes) -> int:
    """The number of data, on which all arguments with an axis of data have to agree."""
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


def take_datum(programs: Programs, data_axes: DataAxes, datum: jax.Array | int) -> Programs:
    """The programs with the arguments of one datum."""
    args = programs.arguments.args
    row = lambda axis: lambda leaf: jnp.take(jnp.asarray(leaf), datum, axis=axis)
    return programs.with_args(
        tuple(
            arg if axis is None else jax.tree.map(row(axis), arg)
            for arg, axis in zip(args, _by_argument(args, data_axes), strict=True)
        )
    )


def _by_argument(args: tuple, data_axes: DataAxes) -> tuple[int | None, ...]:
    return data_axes if isinstance(data_axes, tuple) else (data_axes,) * len(args)
