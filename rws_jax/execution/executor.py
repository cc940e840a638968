"""The interface between what a particle computes and how all of them run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from rws_jax.core.errors import fail
from rws_jax.core.numpyro_internals import Messenger
from rws_jax.execution.branching.handler import no_branching
from rws_jax.execution.data import Data
from rws_jax.execution.ragged import split, stacked
from rws_jax.programs.program import Index, Programs

T = TypeVar("T")
Sums = TypeVar("Sums")
Rest = TypeVar("Rest")
# What one particle computes, as a value: two that are equal compute the same. Its result is a tree of arrays.
ParticleFn = Callable[[Programs, Index], T]


class Executor(ABC):
    """A way in which particles run, of programs of all data or of each datum.

    A particle's draw depends on the seed, on its datum and on its index alone, not on how many there are or how they
    run: all executors give the same numbers. (Keys of the kind ``rbg`` are mapped over by JAX as one.)
    """

    data: Data

    @property
    def ragged(self) -> bool:
        """Whether sites may differ from particle to particle, as Python branches on what they draw."""
        return False

    @property
    def in_python(self) -> bool:
        """Whether it needs the values of parameters and arguments, and so cannot be a part of what JAX traces."""
        return False

    @abstractmethod
    def __call__(self, particle: ParticleFn[T], programs: Programs, num: int) -> T:
        """Run `particle` for indices 0 to `num` - 1, of all data.

        Args:
          particle: what one of them computes.
          programs: what it runs.
          num: how many there are, of each datum.

        Returns:
          Results side by side, leaves of shape ``(num, *data, *result)``, differentiable in ``programs.params``.
        """

    def summed(
        self, particle: ParticleFn[T], programs: Programs, num: int, summarise: Callable[[T], tuple[Sums, Rest]]
    ) -> tuple[Sums, Rest]:
        """Run all particles, and keep of their results a summary, which may be made of some data at a time.

        Args:
          particle: what one of them computes.
          programs: what it runs.
          num: how many there are, of each datum.
          summarise: a function, as a value, of all results. It returns two trees: scalars that are sums over data,
            differentiable, and arrays of each datum, of shape ``(*data, *of_datum)``, which are constants.

        Returns:
          Both trees, of all data.
        """
        results = self(particle, programs, num)
        return _compiled(summarise, results) if self.ragged else summarise(results)

    def runs_alone(self, particle: ParticleFn[T], programs: Programs) -> bool:
        """Whether each particle of these programs is taken as a whole, as one unit, whatever its plates."""
        return self.ragged

    def one(
        self, particle: ParticleFn[T], programs: Programs, number: jax.Array | int = 0, datum: jax.Array | int = 0
    ) -> T:
        """Run a single particle of a single datum, apart from all others."""
        which = None if self.data.count(programs) is None else datum
        with self.watch():
            return particle(self.data.take(programs, which), Index(number, which, self.ragged))

    def watch(self) -> Messenger:
        """A handler for runs of the programs outside of the executor, which lets it know of branching sites."""
        return no_branching()

    def begin(self) -> None:
        """Forget `metrics`, at the beginning of a step."""
        return None

    def metrics(self) -> dict[str, jax.Array]:
        """How particles have run since `begin`: fields of the step's info, scalars."""
        return {}


@partial(jax.jit, static_argnums=0)  # saves time where particles were run un-jitted
def _compiled(summarise: Callable[[T], tuple[Sums, Rest]], results: T) -> tuple[Sums, Rest]:
    return summarise(results)


def side_by_side(results: list[T]) -> T:
    """Stack results that were computed one by one."""
    numbers, ragged, layouts = zip(*map(split, results), strict=True)
    check_alike(layouts)
    columns = [jnp.stack(leaves) for leaves in zip(*numbers, strict=True)]
    return layouts[0].filled(columns, map(stacked, zip(*ragged, strict=True)))


def as_one_unit(result: T) -> T:
    """A result of which all units are one, if it has units."""
    joint: Callable[[], T] = getattr(result, "joint", lambda: result)
    return joint()


def check_alike(structures: Iterable[Hashable]) -> None:
    """Only what has one structure can be laid side by side."""
    if len(set(structures)) > 1:
        fail(
            ValueError,
            "particles differ in what they compute, and cannot be laid side by side",
            expected="the same subsampled plates around all sites, whatever the branch",
            found="plates with subsample_size around all sites of some particles, and not of others",
            hint="subsample outside of the programs: pass the minibatch, with data_axes=0",
        )
