"""The one shape that every message of the package has.

What is wrong and where, what was expected, what was found, and a remedy. All are raised before anything is trained: by
`make_step`, by `init`, by the pure losses and while `step` is traced; never at run time.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import jax

# What JAX raises where Python has to know a traced value.
CONCRETIZATION_ERRORS = jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError


def fail(kind: Callable[[str], Exception], problem: str, *, expected: str, found: str, hint: str) -> NoReturn:
    """Raise `kind` with the message shape that every error of the package has."""
    raise kind(f"{problem}\n  expected: {expected}\n  found:    {found}\n  hint:     {hint}")


def describe(value: Any) -> str:
    """Describe a value in one short line."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {value.dtype}{list(value.shape)}"
    return f"{value!r} of type {type(value).__name__}"


def first_line(error: Exception) -> str:
    """The beginning of an error of JAX, which may go on for a page."""
    return str(error).split("\n")[0][:200]
