"""A particle whose programs branch, as one that does not: all of its branching traces are computed, and one is chosen.

Where branching sites have few values, their traces are the ends of a small tree, which is unrolled while the particle is
traced. What traces have in common is computed once. The particle can then be mapped over, compiled and differentiated as
any other one.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from typing import Any, Generic, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from numpyro.distributions import Distribution

from rws_jax.core.errors import first_line
from rws_jax.core.merged import merged
from rws_jax.core.work import work, work_by_group
from rws_jax.execution.branching.handler import BranchHandler, TraceEnded
from rws_jax.execution.branching.particle import run_one
from rws_jax.execution.branching.trace import BranchingTrace, BranchingValue, describe_trace
from rws_jax.execution.executor import ParticleFn, check_alike
from rws_jax.execution.ragged import Layout, Ragged, chosen, missing, split
from rws_jax.programs.program import Index, Programs

T = TypeVar("T")
MAX_DEPTH = 12  # branching sites on a path: loops without bound are found out soon


class NotUnrolled(Exception):
    """A particle cannot be unrolled; the message says why."""


class Along(NamedTuple):
    """What a particle computes, and which of the traces it has come along."""

    result: Any
    is_taken: jax.Array  # truth values, one for each trace


class _End(NamedTuple):
    """What a particle computes along one trace, and whether this is the one that it takes."""

    is_taken: jax.Array
    numbers: list[jax.Array]
    ragged: list[Ragged]


class Unrolled(Generic[T]):
    """Computes what a particle does, along all of its traces.

    Attributes:
      traces: known once it has been traced.
      work: arithmetic operations of all traces together, and of one alone, the mean; likewise.
    """

    def __init__(
        self,
        particle: ParticleFn[T],
        max_paths: int,
        also_branching: set[str],
        check: Callable[[BranchHandler], None],
    ) -> None:
        self.particle, self.max_paths, self.also_branching, self.check = particle, max_paths, also_branching, check
        self.traces: list[BranchingTrace] = []
        self.work = 0, 0.0
        self._layout: Layout | None = None

    def __call__(self, programs: Programs, index: Index) -> Along:
        """Compute all, and choose."""
        leaves, structure = jax.tree.flatten((programs, index))
        of_leaves = lambda leaves: self._all_ends(*jax.tree.unflatten(structure, leaves))
        traced, shapes = jax.make_jaxpr(of_leaves, return_shape=True)(leaves)
        once = merged(traced)
        by_end = work_by_group(once, [len(jax.tree.leaves(end)) for end in shapes])
        self.work = work(once), sum(by_end) / len(by_end)
        ends = jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(once)(*leaves))
        taken = [end.is_taken for end in ends]
        choose = partial(_chosen, taken)
        numbers = map(choose, zip(*(end.numbers for end in ends), strict=True))
        ragged = [chosen(parts, choose) for parts in zip(*(end.ragged for end in ends), strict=True)]
        return Along(cast(Layout, self._layout).filled(numbers, ragged), jnp.stack(taken))

    def _all_ends(self, programs: Programs, index: Index) -> list[_End]:
        self.traces, ends, layouts = [], [], []
        for trace, is_taken, result in self._ends(programs, index):
            numbers, ragged, layout = split(result)
            self.traces.append(trace)
            ends.append(_End(is_taken, numbers, ragged))
            layouts.append(layout)
        check_alike(layouts)
        self._layout = layouts[0]
        return ends

    def _ends(self, programs: Programs, index: Index) -> Iterator[tuple[BranchingTrace, jax.Array, T]]:
        frontier: list[tuple[BranchingTrace, jax.Array]] = [((), jnp.array(True))]
        num_ends = 0
        while frontier:
            trace, is_taken = frontier.pop()
            handler = BranchHandler(trace, self.also_branching)
            try:
                with jax.ensure_compile_time_eval():  # Python may compute with the constants of the trace
                    result = run_one(handler, self.particle, programs, index)
            except TraceEnded as end:
                values = self._values(end, trace)
                following = lambda value: (*trace, BranchingValue.of(end.name, value))
                frontier += [(following(value), is_taken & jnp.all(end.value == value)) for value in values]
                if num_ends + len(frontier) > self.max_paths:
                    raise NotUnrolled(f"more than {self.max_paths} paths") from None
                continue
            except Exception as error:  # of the programs, perhaps on a path that is never taken
                raise NotUnrolled(first_line(error)) from error
            self.check(handler)
            num_ends += 1
            yield trace, is_taken, result

    def _values(self, end: TraceEnded, trace: BranchingTrace) -> list[np.ndarray]:
        """All values of the site that a trace ends at."""
        if len(trace) == MAX_DEPTH:
            raise NotUnrolled(f"more than {MAX_DEPTH} branching sites on {describe_trace(trace)}")
        values = _support_of(end.fn, self.max_paths)
        if values is None:
            raise NotUnrolled(f"branching site {end.name!r} has more than {self.max_paths} values, or unknown ones")
        return [value.astype(end.value.dtype) for value in values]


def _support_of(fn: Distribution, max_num: int) -> Iterator[np.ndarray] | None:
    """All values of a distribution; None if they are more than `max_num`, without end, or not known."""
    try:
        with jax.ensure_compile_time_eval():
            of_element = np.ravel(fn.enumerate_support(expand=False))
    except (NotImplementedError, jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return None
    num_elements = math.prod(fn.batch_shape)
    if fn.event_shape or len(of_element) ** num_elements > max_num:
        return None
    of_all = itertools.product(of_element, repeat=num_elements)
    return (np.array(values, of_element.dtype).reshape(fn.batch_shape) for values in of_all)


def _chosen(taken: Sequence[jax.Array], arrays: Iterable[jax.Array]) -> jax.Array:
    """The one of several arrays that is taken; if none is, numbers are missing."""
    arrays = list(arrays)
    nothing = jnp.full(jnp.shape(arrays[0]), missing(jnp.result_type(*arrays)))
    return reduce(lambda rest, one: jnp.where(one[0], one[1], rest), zip(taken, arrays, strict=True), nothing)
