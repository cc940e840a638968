"""Whether a step can be compiled as a whole, or calls what is compiled, as its programs branch in Python."""

from collections.abc import Callable
from typing import Any

from rws_jax.execution.branching.errors import BranchingSiteError
from rws_jax.execution.executor import Executor


class Dispatched:
    """Calls `compiled`, one function for all, until branching sites are met, and `in_python` from then on."""

    def __init__(self, compiled: Any, in_python: Callable, executor: Executor, max_ess: int | None = None) -> None:
        self._compiled, self._in_python, self._executor = compiled, in_python, executor
        self.max_ess = max_ess  # that of K equal weights, which `fit` shows beside the mean
        self.lower = compiled.lower  # as functions have that jax.jit returns

    @property
    def jittable(self) -> bool:
        """Whether it can be compiled as a part of something larger."""
        return not self._executor.ragged

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if self.jittable:
            try:
                return self._compiled(*args, **kwargs)
            except BranchingSiteError:  # the executor has met a branching site, and knows from now on
                if self.jittable:
                    raise
        return self._in_python(*args, **kwargs)


class NotJittable:
    """A function that runs its programs un-jitted, of which `fit` makes no compiled blocks."""

    jittable = False

    def __init__(self, in_python: Callable, max_ess: int) -> None:
        self._in_python = in_python
        self.max_ess = max_ess

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._in_python(*args, **kwargs)
