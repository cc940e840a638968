"""NumPyro programs as callables, and the handlers around them."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from rws_jax.core.numpyro_internals import Messenger

ProgramFn = Callable[..., Any]  # a model or a guide
Params = dict[str, Any]  # numpyro.param site -> an array or a tree of arrays
MutableState = dict[str, Any]  # the same for sites of numpyro.primitives.mutable


def hashable(fn: ProgramFn) -> ProgramFn:
    """The same function, hashable as what is static in a tree has to be; modules of equinox, say, are not."""
    try:
        hash(fn)
    except TypeError:
        return partial(fn)
    return fn


def layers(program: Any) -> Iterator[Any]:
    """A program and those inside of it: the handlers around it, then what they wrap."""
    yield program
    while isinstance(program, Messenger) and program.fn is not None:
        program = program.fn
        yield program


def unwrapped(program: Any) -> Any:
    """A program without the handlers around it."""
    return list(layers(program))[-1]
