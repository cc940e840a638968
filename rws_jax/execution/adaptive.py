"""Mapped over, until it turns out that programs branch in Python; from then on along all paths at once, or by paths.

Calls that JAX traces run along all paths, the others by paths, which are compiled once and kept.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import NamedSharding

from rws_jax.core.numpyro_internals import Messenger
from rws_jax.execution.all_paths import AllPaths
from rws_jax.execution.branching.errors import BranchingSiteError, fail_not_unrolled
from rws_jax.execution.branching.handler import no_branching
from rws_jax.execution.branching.unrolled import NotUnrolledError
from rws_jax.execution.by_paths import ByPaths
from rws_jax.execution.executor import Executor, ParticleFn
from rws_jax.programs.program import Programs

T = TypeVar("T")
Sums = TypeVar("Sums")
Rest = TypeVar("Rest")


class Adaptive(Executor):
    """Finds out as programs run which way they need, and remembers it."""

    def __init__(
        self,
        mapped: Executor,
        all_paths: AllPaths,
        by_paths: ByPaths,
        particle_sharding: NamedSharding | None = None,
    ) -> None:
        self.mapped, self.all_paths, self.by_paths = mapped, all_paths, by_paths
        self.particle_sharding = particle_sharding
        self.data = mapped.data
        self._branches = False
        self._not_unrolled = False

    @property
    def ragged(self) -> bool:
        """Whether a branching site has been found so far."""
        return self._branches

    @property
    def in_python(self) -> bool:
        """Whether programs have been found that cannot be compiled as a whole."""
        return self._not_unrolled

    def __call__(self, particle: ParticleFn[T], programs: Programs, num: int) -> T:
        """Run all particles in one of these ways."""
        return self._in_one_way(lambda executor: executor(particle, programs, num))

    def summed(
        self, particle: ParticleFn[T], programs: Programs, num: int, summarise: Callable[[T], tuple[Sums, Rest]]
    ) -> tuple[Sums, Rest]:
        """Run all particles in one of these ways, and keep a summary."""
        return self._in_one_way(lambda executor: executor.summed(particle, programs, num, summarise))

    def _in_one_way(self, run: Callable[[Executor], T]) -> T:
        if not self._branches:
            try:
                return run(self.mapped)
            except BranchingSiteError:  # whether programs branch is known only once they run
                self.branch()
        try:
            return run(self.by_paths)
        except BranchingSiteError:  # values are not known, as JAX traces the call
            pass
        try:
            return run(self.all_paths)
        except NotUnrolledError as error:
            self._not_unrolled = True
            fail_not_unrolled(error)

    def watch(self) -> Messenger:
        """A handler that takes note of branching sites."""
        return no_branching(self.branch)

    def branch(self) -> None:
        """From now on, programs have branching sites."""
        self._branches = True

    def begin(self) -> None:
        """Begin to count paths and un-jitted runs anew, if there are any."""
        if self._branches:
            self.by_paths.begin()
            self.all_paths.begin()

    def metrics(self) -> dict[str, jax.Array]:
        """Counts of paths, where there are any."""
        return (self.all_paths.metrics() or self.by_paths.metrics()) if self._branches else {}
