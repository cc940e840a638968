"""Whether a step can be compiled as a whole, or calls what is compiled, as its programs branch in Python."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from rws_jax.core.errors import is_own
from rws_jax.core.layers import ProgramFn
from rws_jax.core.trees import is_traced
from rws_jax.execution.all_paths import paths_if_cheaper
from rws_jax.execution.branching.errors import BranchingSiteError, warn_of_path
from rws_jax.execution.executor import Executor
from rws_jax.programs.program import Arguments


class Dispatched:
    """Calls `compiled`, one function for all, until branching sites are met, and `in_python` from then on."""

    def __init__(
        self,
        compiled: Any,
        in_python: Callable,
        check_compiles: Callable,
        executor: Executor,
        model: ProgramFn,
        max_ess: int | None = None,
        evaluate: Callable | None = None,
        check_state: Callable | None = None,
    ) -> None:
        self._compiled, self._in_python = compiled, in_python
        self._check_compiles, self._check_state = check_compiles, check_state
        self._executor, self._model = executor, model
        self.max_ess = max_ess  # that of K equal weights, which `fit` shows beside the mean
        self.evaluate = evaluate  # of a step: what it would report

    @property
    def jittable(self) -> bool:
        """Whether it can be compiled as a part of something larger."""
        return not self._executor.in_python

    def lower(self, rws_state: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The compiled function, lowered, as functions have that `jax.jit` returns."""
        args, kwargs = Arguments.of(args, kwargs, self._model)
        return self._compiled.lower(rws_state, *args, **kwargs)

    def __call__(self, rws_state: Any, /, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = Arguments.of(args, kwargs, self._model)  # what is static passes around jax.jit
        is_known = not is_traced((rws_state, args, kwargs))
        for check_state in (self._check_state, None):
            if not self.jittable:
                break
            try:
                with paths_if_cheaper() if is_known else nullcontext():
                    return self._compiled(rws_state, *args, **kwargs)
            except BranchingSiteError as error:  # what the executor has found out, it knows from now on
                if not is_known:
                    raise
                warn_of_path(error)
            except (TypeError, IndexError) as error:  # of these kinds are JAX's errors on traced values
                is_of_jax = not is_own(error) or error.__cause__ is not None
                if not (is_known and is_of_jax and self._finds_branching(rws_state, *args, **kwargs)):
                    raise
            if self.jittable and check_state is not None:  # only un-jitted is a new state held against `init`'s
                check_state(rws_state, *args, **kwargs)
        return self._in_python(rws_state, *args, **kwargs)

    def _finds_branching(self, rws_state: Any, /, *args: Any, **kwargs: Any) -> bool:
        """Whether programs turn out to have branching sites; else the error names what Python has to know."""
        was_known = self._executor.ragged
        try:
            self._check_compiles(rws_state, *args, **kwargs)
        except BranchingSiteError:
            if was_known:
                raise
        return self._executor.ragged and not was_known


class NotJittable:
    """A function that runs its programs un-jitted, of which `fit` makes no compiled blocks."""

    jittable = False

    def __init__(self, in_python: Callable, max_ess: int, evaluate: Callable | None = None) -> None:
        self._in_python = in_python
        self.max_ess, self.evaluate = max_ess, evaluate

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._in_python(*args, **kwargs)
