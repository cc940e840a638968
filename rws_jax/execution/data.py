"""A data axis: programs written for one datum, run on many. Every datum is a unit, with particles of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rws_jax.core.errors import describe, fail
from rws_jax.programs.program import Arguments, Programs

# As `in_axes` of `jax.vmap`: one axis, or one or None for each positional argument. None: programs are of all data.
Axes = int | tuple[int | None, ...] | None
_BY_KEYWORD = "observations"  # the keyword argument that is data by convention; `jax.vmap` maps them over axis 0


@dataclass(frozen=True)
class Data:
    """Where the arguments of programs have the axis of data, if they are written for one datum."""

    axes: Axes = None

    def count(self, programs: Programs) -> int | None:
        """The number of data, on which all arguments with an axis of data agree; None if programs are of all data."""
        return None if self.axes is None else _num_data(programs.arguments, self.axes)

    def in_axes(self, arguments: Arguments) -> Arguments:
        """The axis of data, or None, of each argument; what is passed by keyword is the same for all data."""
        axes = self.axes if isinstance(self.axes, tuple) else (self.axes,) * len(arguments.args)
        by_keyword = {name: 0 if name == _BY_KEYWORD and self.axes is not None else None for name in arguments.kwargs}
        return Arguments(axes, by_keyword)

    def take(self, programs: Programs, datum: jax.Array | int | None) -> Programs:
        """The programs with the arguments of one datum."""
        if datum is None:
            return programs
        return self.map(lambda leaf, axis: jnp.take(leaf, datum, axis=axis), programs)

    def map(self, change: Callable[[jax.Array, int], jax.Array], programs: Programs) -> Programs:
        """The programs with all arrays of data changed by a function of array and axis, which counts from the left."""
        of_leaf = lambda axis: lambda leaf: change(jnp.asarray(leaf), axis % jnp.ndim(leaf))
        of_value = lambda axis, value: value if axis is None else jax.tree.map(of_leaf(axis), value)
        (axes, by_keyword), (args, kwargs) = self.in_axes(programs.arguments), programs.arguments
        args = tuple(map(of_value, axes, args))
        return programs.with_arguments(Arguments(args, {k: of_value(by_keyword[k], kwargs[k]) for k in kwargs}))


ALL_DATA = Data()  # programs are of all data


def _num_data(arguments: Arguments, axes: Axes) -> int:
    args, kwargs = arguments
    if isinstance(axes, tuple) and len(axes) != len(args):
        fail(
            ValueError,
            "option 'data_axes' does not fit the arguments",
            expected=f"an axis, or None, for each of the {len(args)} positional arguments",
            found=f"data_axes={axes}",
            hint="as in_axes of jax.vmap; keyword arguments are the same for all data, but for 'observations'",
        )
    sizes: dict[int, str] = {}
    of_args, by_keyword = Data(axes).in_axes(arguments)
    mapped = [(f"argument {i}", arg, axis) for i, (arg, axis) in enumerate(zip(args, of_args, strict=True))]
    mapped += [(f"argument {name!r}", kwargs[name], axis) for name, axis in by_keyword.items()]
    for argument, value, axis in mapped:
        for leaf in jax.tree.leaves(value):
            if axis is None:
                continue
            shape = jnp.shape(leaf)
            if not -len(shape) <= axis < len(shape):
                fail(
                    ValueError,
                    f"option 'data_axes' asks for axis {axis} of {argument}, which has no such axis",
                    expected="arrays with an axis of data",
                    found=describe(leaf),
                    hint="pass a tuple with None for what is the same for all data, data_axes=(0, None), say",
                )
            sizes[shape[axis]] = f"{shape[axis]} in {argument}"
    if len(sizes) != 1:
        fail(
            ValueError,
            "option 'data_axes' finds no number of data that the arguments agree on",
            expected="one size of all axes of data",
            found=", ".join(sizes.values()) or "no argument with an axis of data",
            hint="every datum takes one row of each such argument, as in jax.vmap: positional ones and 'observations'",
        )
    return next(iter(sizes))
