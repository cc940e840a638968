"""The one shape that every message of the package has.

What is wrong and where, what was expected, what was found, and a remedy. All are raised before anything is trained: by
`make_step`, by `init`, by the pure losses and while `step` is traced; never at run time.
"""

import re
import sysconfig
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax

# What JAX raises where Python has to know a traced value.
CONCRETIZATION_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.TracerArrayConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def fail(
    kind: Callable[[str], Exception],
    problem: str,
    *,
    expected: str,
    found: str,
    hint: str,
    cause: BaseException | None = None,
) -> NoReturn:
    """Raise `kind` with the message shape that every error of the package has, from another error if that led to it."""
    error = kind(f"{problem}\n  expected: {expected}\n  found:    {found}\n  hint:     {hint}")
    if cause is None:
        raise error
    raise error from cause


def is_own(error: BaseException) -> bool:
    """Whether an error has the message shape of the package."""
    return "\n  expected:" in str(error)


def describe(value: Any) -> str:
    """Describe a value in one short line."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {value.dtype}{list(value.shape)}"
    return f"{value!r} of type {type(value).__name__}"


def first_line(error: Exception) -> str:
    """The beginning of an error of JAX, which may go on for a page."""
    return textwrap.shorten(str(error).split("\n")[0], 200, placeholder=" ...")


def where_from(error: Exception, *, names_arguments: bool = False) -> str:
    """The user's own line that an error of JAX comes from, and the beginning of the error.

    What JAX says of arguments is of use to users if they have called `jax.jit` themselves.
    """
    said = first_line(error).rstrip(".")
    named = re.search(r"depends on the values? of the arguments? ([^\n]*?)\.?\n", str(error) + "\n")
    if named and names_arguments:
        said = f"{said}, which depends on {textwrap.shorten(named[1], 100, placeholder=' ...')}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_of_library(frame.filename)]
    if not own:
        return said
    frame = own[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    return f"{textwrap.shorten(frame.line or '', 80, placeholder=' ...')!r} ({place}): {said}"


_LIBRARIES = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_LIBRARIES.add(str(Path(__file__).parent.parent))


def _is_of_library(filename: str) -> bool:
    return "site-packages" in filename or any(filename.startswith(path) for path in _LIBRARIES)
