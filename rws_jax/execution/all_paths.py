"""Programs that branch in Python, compiled as a whole: particles run along all paths, and each is given its own."""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp

from rws_jax.execution.branching.path_cache import PathCache
from rws_jax.execution.branching.trace import BranchingTrace
from rws_jax.execution.branching.unrolled import NotUnrolledError, Unrolled
from rws_jax.execution.executor import Executor, ParticleFn
from rws_jax.programs.program import Programs

T = TypeVar("T")
# On a CPU, by paths, Python takes a millisecond or more for each path. In that time XLA does so many operations.
_MAX_WASTED = 30_000_000
_MAX_RATIO = 4.0  # of work that is small in any case


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
        unrolled = Unrolled(particle, self.cache.max_paths, self.cache.also_branching, self.cache.check_supports)
        result, is_taken = self.mapped(unrolled, programs, num)
        self._check_work(unrolled, math.prod(is_taken.shape[:-1]))
        any_taken = jnp.any(is_taken, axis=range(is_taken.ndim - 1))
        for number, trace in enumerate(unrolled.traces):
            path = tuple(value for value in trace if value.is_of_program)
            self._taken[path] = self._taken.get(path, False) | any_taken[number]
        return result

    def _check_work(self, unrolled: Unrolled, num: int) -> None:
        """By paths, each particle runs along its own path alone, for some time in Python for each path."""
        (of_all, of_one), num_paths = unrolled.work, len(unrolled.traces)
        wasted = 3 * num * (of_all - of_one)  # with the way back
        if jax.default_backend() == "cpu" and of_all > _MAX_RATIO * of_one and wasted > _MAX_WASTED * num_paths:
            raise NotUnrolledError(f"{num_paths} paths that take {of_all / of_one:.0f} times the work of one")

    def begin(self) -> None:
        """Begin to count paths anew."""
        self._taken.clear()

    def metrics(self) -> dict[str, jax.Array]:
        """The number of paths that particles have come along."""
        taken = [*self._taken.values()]
        self._taken.clear()  # they may be of a trace of JAX that ends
        return {"num_paths": jnp.sum(jnp.stack(taken))} if taken else {}
