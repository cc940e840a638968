"""Whether a step can be compiled as a whole, or calls what is compiled, as its programs branch in Python."""

from collections.abc import Callable
from typing import Any

import jax

from rws_jax.core.layers import ProgramFn
from rws_jax.execution.branching.errors import BranchingSiteError
from rws_jax.execution.executor import Executor
from rws_jax.programs.program import Arguments


class Dispatched:
    """Calls `compiled`, one function for all, until branching sites are met, and `in_python` from then on."""

    def __init__(self, compiled: Any, in_python: Callable, executor: Executor, model: ProgramFn) -> None:
        self._compiled, self._in_python, self._executor, self._model = compiled, in_python, executor, model

    @property
    def jittable(self) -> bool:
        """Whether it can be compiled as a part of something larger."""
        return not self._executor.ragged

    def lower(self, rws_state: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The compiled function, lowered, as functions have that `jax.jit` returns."""
        args, kwargs = Arguments.of(args, kwargs, self._model)
        return self._compiled.lower(rws_state, *args, **kwargs)

    def __call__(self, rws_state: Any, /, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = Arguments.of(args, kwargs, self._model)  # what is static passes around jax.jit
        if self.jittable:
            try:
                return self._compiled(rws_state, *args, **kwargs)
            except BranchingSiteError:  # the executor has met a branching site, and knows from now on
                if self.jittable:
                    raise
        return self._in_python(rws_state, *args, **kwargs)


class NotJittable:
    """A function that runs its programs un-jitted, of which `fit` makes no compiled blocks."""

    jittable = False

    def __init__(self, in_python: Callable) -> None:
        self._in_python = in_python

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._in_python(*args, **kwargs)


def jitted(step: Callable) -> Callable:
    """A function of a state and of arguments, compiled around what is static among these."""

    @jax.jit
    def compiled(state: Any, arguments: Arguments) -> Any:
        args, kwargs = arguments.plain
        return step(state, *args, **kwargs)

    return lambda state, *args, **kwargs: compiled(state, Arguments.of(args, kwargs))
