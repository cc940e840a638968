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
    known: dict[Any, Callable | None] = {}  # for trees of a structure that has come up; None: it cannot be compiled

    @wraps(function)
    def call(*args: Any) -> Any:
        if not _is_on.get():
            return function(*args)
        # An argument that is there twice, as the distribution that has drawn its own value, is taken once.
        places = tuple([min(place for place, other in enumerate(args) if other is arg) for arg in args])
        try:
            leaves, structure = jax.tree.flatten([args[place] for place in dict.fromkeys(places)])
            kind = structure, places
            is_new = kind not in known
        except Exception:  # without a hash, or of a class that is no tree
            return function(*args)
        compiled = None if is_new else known[kind]
        if compiled is not None:
            try:
                return compiled(leaves)
            except Exception:  # whatever Python does to values that it does not know
                known[kind] = None
        elif is_new:
            if len(known) >= _MOST_KINDS:
                known.clear()
            known[kind] = _of_leaves(function, structure, places) if all(map(_is_of_numpyro, args)) else None
        return function(*args)

    return cast(F, call)


def _of_leaves(function: Callable, structure: Any, places: tuple[int, ...]) -> Callable:
    """A function compiled for arguments of a structure, of their leaves; `places` says which argument each one is."""

    def of_leaves(leaves: list[Any]) -> Any:
        different = dict(zip(dict.fromkeys(places), jax.tree.unflatten(structure, leaves), strict=True))
        return function(*[different[place] for place in places])

    return jax.jit(of_leaves)


def _is_of_numpyro(value: Any) -> bool:
    """Whether a distribution, and all that it is made of, are of NumPyro's own classes, whose trees lack nothing."""
    if isinstance(value, list | tuple):
        return all(map(_is_of_numpyro, value))
    if not isinstance(value, Distribution | Transform | Constraint):
        return True
    return type(value).__module__.startswith("numpyro.") and all(map(_is_of_numpyro, vars(value).values()))
