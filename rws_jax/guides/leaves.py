"""What a guide reads: the numbers among its arguments, by name."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.core.errors import describe, fail
from rws_jax.core.layers import ProgramFn


def number_leaves(arguments: dict[str, Any]) -> dict[str, Any]:
    """Numbers and arrays among the arguments, by the name of the argument and the path within it.

    Flags, functions, text and random keys steer a program, and are no data.
    """
    leaves: dict[str, Any] = {}
    for argument, value in arguments.items():
        if _is_ragged(value):
            _fail_unreadable(argument, "lists of numbers whose lengths differ")
        for path, leaf in jax.tree.leaves_with_path(value):
            if _is_number(argument, leaf):
                leaves[_name_of(argument, path)] = leaf
    return leaves


def check_readable(arguments: dict[str, Any], leaves: dict[str, Any]) -> None:
    """There is something to read, if arguments could be data."""
    could_be = {name: value for name, value in arguments.items() if not _is_flag(value)}
    if could_be and not leaves:
        name, value = next(iter(could_be.items()))
        _fail_unreadable(name, describe(value))


def with_numbers(arguments: dict[str, Any], leaves: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with other numbers in the places of `leaves`."""
    put = lambda argument: lambda path, leaf: leaves.get(_name_of(argument, path), leaf)
    return {name: jax.tree_util.tree_map_with_path(put(name), value) for name, value in arguments.items()}


def _name_of(argument: str, path: tuple) -> str:
    return f"{argument}{jax.tree_util.keystr(path)}"


def _is_ragged(value: Any) -> bool:
    """Whether lists of numbers, within one list, have different lengths."""
    if not isinstance(value, list | tuple) or not all(isinstance(row, list | tuple) for row in value):
        return False
    is_numbers = all(np.ndim(leaf) == 0 for row in value for leaf in row if not isinstance(leaf, list | tuple | dict))
    return any(map(_is_ragged, value)) or (is_numbers and len({len(row) for row in value}) > 1)


def _is_number(argument: str, leaf: Any) -> bool:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return False
    is_text = isinstance(leaf, np.ndarray | np.generic) and not (
        leaf.dtype == bool or np.issubdtype(leaf.dtype, np.number)
    )
    if is_text or (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.complexfloating)):
        _fail_unreadable(argument, f"an array of dtype {leaf.dtype}")
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) or _is_python_number(leaf)


def _is_python_number(leaf: Any) -> bool:
    return isinstance(leaf, int | float) and not isinstance(leaf, bool)


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool) or callable(value) or not jax.tree.leaves(value)


def _fail_unreadable(argument: str, found: str) -> None:
    fail(
        TypeError,
        f"the compiled guide cannot read argument {argument!r}",
        expected="numbers and arrays, alone or in dicts, tuples and lists",
        found=found,
        hint="pad what differs in length into one array, beside a mask; or pass embed=, a function of the model's"
        " arguments that returns a vector",
    )


def as_floats(leaf: Any) -> jax.Array:
    """A leaf as floating point numbers."""
    return jnp.asarray(leaf, jnp.result_type(float))


def signature_of(model: ProgramFn) -> inspect.Signature:
    """The signature that a guide takes over from its model."""
    try:
        return inspect.signature(model)
    except (TypeError, ValueError):
        anything = [inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)]
        return inspect.Signature([*anything, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])
