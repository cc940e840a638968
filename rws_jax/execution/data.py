"""A data axis: programs written for one datum, run on many. Every datum is a unit, with particles of its own."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rws_jax.core.errors import describe, fail
from rws_jax.programs.program import Programs

# As `in_axes` of `jax.vmap`: one axis, or one or None for each positional argument. None: programs are of all data.
Axes = int | tuple[int | None, ...] | None


@dataclass(frozen=True)
class Data:
    """Where the arguments of programs have the axis of data, if they are written for one datum."""

    axes: Axes = None

    def count(self, programs: Programs) -> int | None:
        """The number of data, on which all arguments with an axis of data agree; None if programs are of all data."""
        return None if self.axes is None else _num_data(programs.arguments.args, self.axes)

    def take(self, programs: Programs, datum: jax.Array | int | None) -> Programs:
        """The programs with the arguments of one datum."""
        if datum is None:
            return programs
        args = programs.arguments.args
        row = lambda axis: lambda leaf: jnp.take(jnp.asarray(leaf), datum, axis=axis)
        return programs.with_args(
            tuple(
                arg if axis is None else jax.tree.map(row(axis), arg)
                for arg, axis in zip(args, _by_argument(args, self.axes), strict=True)
            )
        )


ALL_DATA = Data()  # programs are of all data


def _num_data(args: tuple, axes: Axes) -> int:
    if isinstance(axes, tuple) and len(axes) != len(args):
        fail(
            ValueError,
            "option 'data_axes' does not fit the arguments",
            expected=f"an axis, or None, for each of the {len(args)} positional arguments",
            found=f"data_axes={axes}",
            hint="as in_axes of jax.vmap; arguments passed by keyword are the same for all data",
        )
    sizes: dict[int, str] = {}
    for position, (arg, axis) in enumerate(zip(args, _by_argument(args, axes), strict=True)):
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


def _by_argument(args: tuple, axes: Axes) -> tuple[int | None, ...]:
    return axes if isinstance(axes, tuple) else (axes,) * len(args)
