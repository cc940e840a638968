"""What a guide reads: the numbers among its arguments, by name."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.core.errors import describe, fail
from rws_jax.core.layers import ProgramFn


def number_leaves(signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Numbers and arrays among the arguments, by the name of the argument and the path within it.

    Flags, functions, text and random keys steer a program, and are no data. An argument that could only be data and has
    no array is an error.
    """
    bound = signature.bind(*args, **kwargs).arguments
    leaves: dict[str, Any] = {}
    for argument, value in bound.items():
        for path, leaf in jax.tree.leaves_with_path(_as_arrays(argument, value)):
            if _is_number(argument, leaf):
                leaves[f"{argument}{jax.tree_util.keystr(path)}"] = leaf
    given = {name: value for name, value in bound.items() if not _is_flag(value)}
    if given and not leaves:
        name, value = next(iter(given.items()))
        _fail_unreadable(name, describe(value))
    return leaves


def _as_arrays(argument: str, value: Any) -> Any:
    """A list of numbers as the array that it stands for."""
    is_numbers = isinstance(value, list) and value and all(map(_is_python_number, jax.tree.leaves(value)))
    if not is_numbers:
        return value
    try:
        return np.asarray(value)
    except ValueError:  # lists of different lengths
        _fail_unreadable(argument, "lists of numbers whose lengths differ")


def _is_number(argument: str, leaf: Any) -> bool:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return False
    if isinstance(leaf, np.ndarray | np.generic) and not (leaf.dtype == bool or np.issubdtype(leaf.dtype, np.number)):
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
    """A leaf as floating point numbers, with zeros in place of NaN, which stand for what is missing."""
    numbers = jnp.asarray(leaf, jnp.result_type(float))
    return jnp.where(jnp.isnan(numbers), 0.0, numbers)


def signature_of(model: ProgramFn) -> inspect.Signature:
    """The signature that a guide takes over from its model."""
    try:
        return inspect.signature(model)
    except (TypeError, ValueError):
        anything = [inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)]
        return inspect.Signature([*anything, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])
