"""Programs that branch in Python, compiled as a whole: particles run along all paths, and each is given its own."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import jax
import jax.numpy as jnp

from rws_jax.execution.branching.path_cache import PathCache
from rws_jax.execution.branching.trace import BranchingTrace
from rws_jax.execution.branching.unrolled import Along, NotUnrolledError, Unrolled
from rws_jax.execution.executor import Executor, ParticleFn
from rws_jax.programs.program import Programs

T = TypeVar("T")
Sums = TypeVar("Sums")
Rest = TypeVar("Rest")

_has_choice: ContextVar[bool] = ContextVar("paths_if_cheaper", default=False)


@contextmanager
def paths_if_cheaper() -> Iterator[None]:
    """Within it, whoever traces a call can run by paths instead, and programs that waste much work are not unrolled."""
    token = _has_choice.set(True)
    try:
        yield
    finally:
        _has_choice.reset(token)


class AllPaths(Executor):
    """Particles whose paths are at most `max_paths`, unrolled and run by another executor.

    Raises `NotUnrolledError` for programs with more paths.
    """

    def __init__(self, mapped: Executor, cache: PathCache) -> None:
        self.mapped, self.cache = mapped, cache
        self.data = mapped.data
        self._taken: dict[BranchingTrace, jax.Array] = {}  # which paths any particle has come along

    @property
    def ragged(self) -> bool:
        """Python branches on what is drawn."""
        return True

    def __call__(self, particle: ParticleFn[T], programs: Programs, num: int) -> T:
        """Run all particles along all paths."""
        unrolled = self._unrolled(particle)
        result, is_taken = self.mapped(unrolled, programs, num)
        self._note(unrolled, is_taken, math.prod(is_taken.shape[:-1]))
        return result

    def summed(
        self, particle: ParticleFn[T], programs: Programs, num: int, summarise: Callable[[T], tuple[Sums, Rest]]
    ) -> tuple[Sums, Rest]:
        """Run all particles along all paths, and keep a summary."""
        unrolled = self._unrolled(particle)

        def with_taken(along: Along) -> tuple[Sums, tuple[Rest, jax.Array]]:
            sums, rest = summarise(along.result)
            return sums, (rest, jnp.any(along.is_taken, axis=0))

        sums, (rest, is_taken) = self.mapped.summed(unrolled, programs, num, with_taken)
        self._note(unrolled, is_taken, num * math.prod(is_taken.shape[:-1]))
        return sums, rest

    def _unrolled(self, particle: ParticleFn[T]) -> Unrolled[T]:
        return Unrolled(particle, self.cache.max_paths, self.cache.also_branching, self.cache.check_supports)

    def _note(self, unrolled: Unrolled, is_taken: jax.Array, num: int) -> None:
        """Take note of the paths that any particle has come along."""
        self._check_work(unrolled, num)
        any_taken = jnp.any(is_taken, axis=range(is_taken.ndim - 1))
        for number, trace in enumerate(unrolled.traces):
            path = tuple(value for value in trace if value.is_of_program)
            self._taken[path] = self._taken.get(path, False) | any_taken[number]

    def _check_work(self, unrolled: Unrolled, num: int) -> None:
        """By paths, each particle runs along its own path alone, for some time in Python for each path."""
        if _has_choice.get() and unrolled.wastes(num):
            (of_all, of_one), num_paths = unrolled.work, len(unrolled.traces)
            raise NotUnrolledError(f"{num_paths} paths that take {of_all / of_one:.0f} times the work of one")

    def begin(self) -> None:
        """Begin to count paths anew."""
        self._taken.clear()

    def metrics(self) -> dict[str, jax.Array]:
        """The number of paths that particles have come along."""
        taken = [*self._taken.values()]
        self._taken.clear()  # they may be of a trace of JAX that ends
        return {"num_paths": jnp.sum(jnp.stack(taken))} if taken else {}
