"""What is computed at single sites, compiled once for each kind of distribution and shape.

A particle that runs un-jitted calls JAX for each operation in turn, of which a density has some ten. Within
`compiled_sites` it is one call.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar, cast

import jax
import numpyro
from numpyro.distributions import Distribution
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

F = TypeVar("F", bound=Callable)

_is_on: ContextVar[bool] = ContextVar("compiled_sites", default=False)
_MOST_KINDS = 1000


@contextmanager
def compiled_sites() -> Iterator[None]:
    """Call what `at_site` marks as compiled functions; values are not validated, as in all that is compiled."""
    token = _is_on.set(True)
    try:
        with numpyro.validation_enabled(False):
            yield
    finally:
        _is_on.reset(token)


def are_sites_compiled() -> bool:
    """Whether this runs within `compiled_sites`."""
    return _is_on.get()


def at_site(function: F) -> F:
    """Mark a function of distributions and arrays, to be compiled within `compiled_sites`.

    It is compiled for trees of a structure that comes up again. A distribution that is made of functions, say, may have
    a structure of its own each time, one that Python computes with cannot be compiled, and one of a user's class may
    have attributes that its tree lacks: these are called as they are.
    """
    compiled = jax.jit(function)
    seen: dict[Any, bool] = {}  # whether functions of trees of a structure can be compiled

    @wraps(function)
    def call(*args: Any) -> Any:
        if not _is_on.get():
            return function(*args)
        try:
            structure = jax.tree.structure(args)
            can_be = seen.get(structure)
        except Exception:  # without a hash, or of a class that is no tree
            return function(*args)
        if can_be:
            try:
                return compiled(*args)
            except Exception:  # whatever Python does to values that it does not know
                seen[structure] = False
        elif can_be is None:
            if len(seen) >= _MOST_KINDS:
                seen.clear()
            seen[structure] = all(map(_is_of_numpyro, args))
        return function(*args)

    return cast(F, call)


def _is_of_numpyro(value: Any) -> bool:
    """Whether a distribution, and all that it is made of, are of NumPyro's own classes, whose trees lack nothing."""
    if isinstance(value, list | tuple):
        return all(map(_is_of_numpyro, value))
    if not isinstance(value, Distribution | Transform | Constraint):
        return True
    return type(value).__module__.startswith("numpyro.") and all(map(_is_of_numpyro, vars(value).values()))
