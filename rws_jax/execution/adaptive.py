"""Mapped over, until it turns out that programs branch in Python, and by paths from then on."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import NamedSharding

from rws_jax.core.errors import fail
from rws_jax.core.numpyro_internals import Messenger
from rws_jax.execution.branching.errors import BranchingSiteError
from rws_jax.execution.branching.handler import no_branching
from rws_jax.execution.by_paths import ByPaths
from rws_jax.execution.executor import Executor, ParticleFn
from rws_jax.programs.program import Programs

T = TypeVar("T")
Sums = TypeVar("Sums")
Rest = TypeVar("Rest")


class Adaptive(Executor):
    """Finds out as programs run which of two ways they need, and remembers it."""

    def __init__(self, mapped: Executor, by_paths: ByPaths, particle_sharding: NamedSharding | None = None) -> None:
        self.mapped, self.by_paths, self.particle_sharding = mapped, by_paths, particle_sharding
        self.data = mapped.data
        self._branches = False

    @property
    def ragged(self) -> bool:
        """Whether a branching site has been found so far."""
        return self._branches

    def __call__(self, particle: ParticleFn[T], programs: Programs, num: int) -> T:
        """Run all particles in the one way or the other."""
        return self._by_either(lambda executor: executor(particle, programs, num))

    def summed(
        self, particle: ParticleFn[T], programs: Programs, num: int, summarise: Callable[[T], tuple[Sums, Rest]]
    ) -> tuple[Sums, Rest]:
        """Run all particles in the one way or the other, and keep a summary."""
        return self._by_either(lambda executor: executor.summed(particle, programs, num, summarise))

    def _by_either(self, run: Callable[[Executor], T]) -> T:
        if not self._branches:
            try:
                return run(self.mapped)
            except BranchingSiteError:  # whether programs branch is known only once they run
                self.branch()
        return run(self.by_paths)

    def watch(self) -> Messenger:
        """A handler that takes note of branching sites."""
        return no_branching(self.branch)

    def branch(self) -> None:
        """From now on, programs have branching sites."""
        if self.particle_sharding is not None:
            fail(
                ValueError,
                "programs have branching sites, and an option does not go with these",
                expected="particle_sharding=None: each path runs on one device",
                found="a sharding of particles",
                hint="leave the option out, or branch by numpyro.contrib.control_flow.cond or handlers.mask instead",
            )
        self._branches = True

    def begin(self) -> None:
        """Begin to count paths and un-jitted runs anew, if there are any."""
        if self._branches:
            self.by_paths.begin()

    def metrics(self) -> dict[str, jax.Array]:
        """Counts of paths, where there are any."""
        return self.by_paths.metrics() if self._branches else {}
