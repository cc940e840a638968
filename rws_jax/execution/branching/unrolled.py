"""A particle whose programs branch, as one that does not: all of its branching traces are computed, and one is chosen.

Where branching sites have few values, their traces are the ends of a small tree, which is unrolled while the particle
is traced. What traces have in common is computed once. The particle can then be mapped over, compiled and
differentiated as any other one.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from typing import Any, Generic, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from numpyro.distributions import Distribution

from rws_jax.core.errors import CONCRETIZATION_ERRORS, first_line
from rws_jax.core.merged import merged
from rws_jax.core.work import work, work_by_group
from rws_jax.execution.branching.errors import UnannotatedError
from rws_jax.execution.branching.handler import BranchHandler, Latents, TraceEnded, UnannotatedBranch
from rws_jax.execution.branching.particle import run_one
from rws_jax.execution.branching.trace import BranchingTrace, BranchingValue, describe_trace
from rws_jax.execution.executor import ParticleFn, check_alike
from rws_jax.execution.ragged import Layout, Ragged, chosen, missing, split
from rws_jax.programs.program import Index, Programs

T = TypeVar("T")
MIN_LOG_PROB = -13.8  # one in a million; NumPyro takes a probability of zero for 1e-7
MAX_DEPTH = 12  # branching sites on a path: loops without bound are found out soon

# On a CPU, by paths, Python takes a millisecond or more for each path. In that time XLA does so many operations.
_MAX_WASTED = 30_000_000
_MAX_RATIO = 4.0  # of work that is small in any case


class NotUnrolledError(Exception):
    """A particle cannot be unrolled; the message says why."""


class Along(NamedTuple):
    """What a particle computes, and which of the traces it has come along."""

    result: Any
    is_taken: jax.Array  # truth values, one for each trace, and for each beginning that is left over


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
        while True:
            try:
                traced, shapes = jax.make_jaxpr(of_leaves, return_shape=True)(leaves)
                break
            except UnannotatedBranch as site:  # it is annotated in another program than the one that draws it
                self.also_branching.add(site.name)
            except UnannotatedError as error:  # it may be, in one that would have run later
                self._annotate(leaves, structure, error)
        return self._chosen(traced, shapes, leaves)

    def _chosen(self, traced: ClosedJaxpr, shapes: list["_End"], leaves: list[jax.Array]) -> Along:
        """Compute all that has been traced, operations that are equal once, and choose."""
        once = merged(traced)
        by_end = work_by_group(once, [len(jax.tree.leaves(end)) for end in shapes])
        self.work = work(once), sum(by_end) / len(by_end)
        ends = jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(once)(*leaves))
        taken, whole = [end.is_taken for end in ends], ends[: len(self.traces)]
        choose = partial(_chosen, taken[: len(whole)])
        numbers = map(choose, zip(*(end.numbers for end in whole), strict=True))
        ragged = [chosen(parts, choose) for parts in zip(*(end.ragged for end in whole), strict=True)]
        return Along(cast(Layout, self._layout).filled(numbers, ragged), jnp.stack(taken))

    def wastes(self, num: int) -> bool:
        """Whether so many particles had better run by paths, each along its own alone, on a CPU."""
        if jax.default_backend() != "cpu":
            return False
        of_all, of_one = self.work
        wasted = 3 * num * (of_all - of_one)  # with the way back
        return of_all > _MAX_RATIO * of_one and wasted > _MAX_WASTED * len(self.traces)

    def _annotate(self, leaves: list[jax.Array], structure: Any, error: UnannotatedError) -> None:
        """Note which sites that an error is of are annotated in any program, found out along a single path."""
        latents, names = Latents(), set(error.names)
        of_more = Unrolled(self.particle, self.max_paths, self.also_branching | names, lambda _: None)

        def of_leaves(leaves: list[jax.Array]) -> None:
            with latents:
                next(of_more._ends(*jax.tree.unflatten(structure, leaves)))

        with contextlib.suppress(UnannotatedBranch, UnannotatedError, NotUnrolledError):
            jax.eval_shape(of_leaves, leaves)
        names &= latents.branching
        if names <= self.also_branching:
            raise NotUnrolledError(first_line(error)) from error
        self.also_branching.update(names)

    def _all_ends(self, programs: Programs, index: Index) -> list[_End]:
        self.traces, ends, layouts = [], [], []
        for trace, is_taken, result in self._ends(programs, index):
            numbers, ragged, layout = split(result)
            self.traces.append(trace)
            ends.append(_End(is_taken, numbers, ragged))
            layouts.append(layout)
        if not ends:
            raise NotUnrolledError("no path that can be run")
        check_alike(layouts)
        self._layout = layouts[0]
        return ends

    def _ends(self, programs: Programs, index: Index) -> Iterator[tuple[BranchingTrace, jax.Array, T]]:
        frontier = [_Begun((), jnp.array(True))]  # the next one last
        num_ends = 0
        while frontier:
            begun = frontier.pop()
            handler = BranchHandler(begun.trace, self.also_branching)
            try:
                with jax.ensure_compile_time_eval():  # Python may compute with the constants of the trace
                    result = run_one(handler, self.particle, programs, index)
            except TraceEnded as end:
                frontier += self._following(begun, end)[::-1]
                if num_ends + len(frontier) > self.max_paths:
                    raise NotUnrolledError(f"more than max_paths={self.max_paths} paths") from None
                continue
            except Exception as error:
                if begun.is_impossible:  # programs need not be prepared for it
                    continue
                if isinstance(error, UnannotatedError):
                    raise
                raise NotUnrolledError(first_line(error)) from error
            self.check(handler)
            num_ends += 1
            yield begun.trace, begun.is_taken, result

    def _following(self, begun: "_Begun", end: TraceEnded) -> list["_Begun"]:
        """The traces that go on where one has ended, one for each value of the site."""
        if len(begun.trace) == MAX_DEPTH:
            raise NotUnrolledError(f"more than {MAX_DEPTH} branching sites on {describe_trace(begun.trace)}")
        values = _support_of(end.fn, self.max_paths)
        if values is None:
            raise NotUnrolledError(
                f"branching site {end.name!r} has more than max_paths={self.max_paths} values, or unknown ones"
            )
        following = []
        for value in values:
            value = value.astype(end.value.dtype)
            is_taken = begun.is_taken & jnp.all(end.value == value)
            is_impossible = begun.is_impossible or _is_impossible(end.fn, value)
            following.append(_Begun((*begun.trace, BranchingValue.of(end.name, value)), is_taken, is_impossible))
        return following


class _Begun(NamedTuple):
    """The beginning of a trace."""

    trace: BranchingTrace
    is_taken: jax.Array  # whether a particle comes along it
    is_impossible: bool = False  # whether it is known that none does


def _is_impossible(fn: Distribution, value: np.ndarray) -> bool:
    """Whether a distribution of constants, as of the last round of a bounded loop, is known not to draw a value."""
    with jax.ensure_compile_time_eval(), numpyro.validation_enabled(False):
        log_prob = jnp.sum(fn.log_prob(value))
        return not isinstance(log_prob, Tracer) and bool(log_prob < MIN_LOG_PROB)


def _support_of(fn: Distribution, max_num: int) -> Iterator[np.ndarray] | None:
    """All values of a distribution; None if they are more than `max_num`, without end, or not known."""
    try:
        with jax.ensure_compile_time_eval():
            of_element = np.ravel(fn.enumerate_support(expand=False))
            # A class of a user's may draw other values than the one that it is made of.
            support: Any = fn.support
            is_inside = [bool(jnp.all(support(value))) for value in of_element]
    except (NotImplementedError, *CONCRETIZATION_ERRORS):
        return None
    if not all(is_inside):
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
