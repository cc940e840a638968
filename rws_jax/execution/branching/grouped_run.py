"""All particles of all data along their branching traces: those that share one run together, forward and back.

One function for each beginning of a trace draws up to the next branching site. What is drawn there comes to the host,
particles are grouped by it, and so on until the programs end. If programs have a tree of few traces, all particles run
along it first, and those that leave it go on so. Then the function of each whole trace, called again, gives its part of
the gradient.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.core.trees import split_floats
from rws_jax.execution.branching.compiled_path import CompiledPath
from rws_jax.execution.branching.compiled_tree import CompiledTree
from rws_jax.execution.branching.handler import BranchHandler
from rws_jax.execution.branching.path_cache import SIZES, Kind, PathCache
from rws_jax.execution.branching.rare_path import RarePath, drawn
from rws_jax.execution.branching.trace import BranchingTrace, BranchingValue
from rws_jax.execution.branching.unrolled import NotUnrolledError
from rws_jax.execution.executor import check_alike
from rws_jax.execution.ragged import Layout, Ragged, scattered
from rws_jax.programs.program import Index, Programs
from rws_jax.programs.run import Draws


class Group(NamedTuple):
    """Particles that have come along one branching trace to its end."""

    trace: BranchingTrace
    members: np.ndarray  # which of the particles
    compiled: CompiledPath | None  # None: they are interpreted, one by one
    rare: RarePath | None = None
    values: tuple[list[Any], ...] = ()  # of each particle, if it is rare: what its gradients need


class TreeGroup(NamedTuple):
    """Particles that have run along a tree of traces."""

    tree: CompiledTree
    members: np.ndarray
    pullback: Any  # from cotangents to gradients; None: it is computed anew, to save memory


class GroupedRun:
    """The forward pass, done when it is made, and what the way back needs of it."""

    def __init__(
        self,
        cache: PathCache,
        kind: Kind,
        programs: Programs,
        pairs: np.ndarray,
        max_size: int | None,
        *,
        has_way_back: bool,
    ) -> None:
        self._cache, self._kind, self._programs, self._pairs = cache, kind, programs, pairs
        self._grads = _zeros_like(split_floats(programs.params)[0])
        self.results = np.zeros((len(pairs), 0), jnp.result_type(float))  # the numbers that each particle computes
        self.layout: Layout | None = None  # the tree that these are the numbers of
        self._of_datum: dict[int, Programs] = {}
        self._ragged: list[list[Ragged]] = []  # what is ragged in it, of each group
        self._traces: set[BranchingTrace] = set()
        self.groups: list[Group] = []
        self.tree_groups: list[TreeGroup] = []
        self._has_way_back, self._keeps = has_way_back, max_size is None
        frontier = _parts((), np.arange(len(pairs)), max_size)
        frontier = _merged(self._beyond_tree([members for _, members in frontier]))
        while frontier:
            parts = [part for trace, members in frontier for part in _parts(trace, members, max_size)]
            frontier = _merged(self._beyond(parts))
        members = [group.members for group in self.groups]
        self.ragged = [scattered(parts, members) for parts in zip(*self._ragged, strict=True)]
        cache.traces |= {tuple(value for value in trace if value.is_of_program) for trace in self._traces}

    def _beyond_tree(self, parts: list[np.ndarray]) -> list[tuple[BranchingTrace, np.ndarray]]:
        """Run particles along a tree of traces, if there is one; those that leave it are left, or all."""
        calls, everyone = [], [((), members) for members in parts]
        for members in parts:
            tree = self._cache.find_tree(self._kind, len(members))
            if tree is None:  # the same for all parts, but for the size of the last one
                return everyone
            for start in range(0, len(members), tree.size):
                part = members[start : start + tree.size]
                try:
                    passed = tree.forward(self._programs, self._pairs[part])
                except NotUnrolledError:
                    self._cache.drop_trees(self._kind)
                    return everyone
                is_safe = True
                if self._has_way_back:  # no derivative along a trace that is not taken may spoil the others'
                    nothing = np.zeros(passed.numbers.shape, passed.numbers.dtype)
                    _, is_safe = tree.backward(passed.pullback, nothing, self._grads)
                self._cache.keep(self._kind, tree)
                calls.append((tree, part, passed if self._keeps else passed._replace(pullback=None), is_safe))
        fetched = jax.device_get([(passed.numbers, passed.which, is_safe) for *_, passed, is_safe in calls])
        if not all(is_safe for *_, is_safe in fetched):
            self._cache.drop_trees(self._kind)
            return everyone
        left = []
        for (tree, members, passed, _), (numbers, which, _) in zip(calls, fetched, strict=True):
            numbers, which = numbers[: len(members)], which[: len(members)]
            left += self._leave_tree(TreeGroup(tree, members, passed.pullback), numbers, which)
        return left

    def _leave_tree(
        self, group: TreeGroup, numbers: np.ndarray, which: np.ndarray
    ) -> list[tuple[BranchingTrace, np.ndarray]]:
        tree, members, left = group.tree, group.members, []
        self._lay_out(numbers.shape[1], tree.layout)
        self.results[members] = numbers
        self.tree_groups.append(group)
        for number in np.unique(which).tolist():
            if number < len(tree.handlers):
                self._cache.check_supports(tree.handlers[number])
                self._traces.add(tree.traces[number])
            else:
                left.append((tree.traces[number], members[which == number]))
        return left

    def _beyond(self, frontier: list[tuple[BranchingTrace, np.ndarray]]) -> Iterator[tuple[BranchingTrace, np.ndarray]]:
        """Go one branching site further; particles at the end of their programs are done."""
        calls = []
        for trace, members in frontier:  # all are on their way before the first one is waited for
            compiled = self._cache.find(self._kind, trace, len(members))
            if compiled is None:
                self._interpret(trace, members)
                continue
            for start in range(0, len(members), compiled.size):
                part = members[start : start + compiled.size]
                values, ragged, _ = compiled(self._programs, self._pairs[part], None, self._grads)
                self._cache.keep(self._kind, compiled)
                calls.append((trace, part, compiled, values, ragged))
        fetched = jax.device_get([(values, ragged) for *_, values, ragged in calls])  # all in one transfer
        for (trace, members, compiled, *_), (values, ragged) in zip(calls, fetched, strict=True):
            values = values[: len(members)]
            if compiled.stops_at is None:
                ragged = jax.tree.map(partial(_first, len(members)), ragged)
                self._finish(Group(trace, members, compiled), values, ragged, compiled.layout)
                continue
            different, which = np.unique(values, axis=0, return_inverse=True)
            self._cache.warn_of_values(trace, compiled.stops_at, len(different), len(members))
            for number, value in enumerate(different):
                yield (*trace, BranchingValue.of(compiled.stops_at, value)), members[which.ravel() == number]

    def _interpret(self, trace: BranchingTrace, members: np.ndarray) -> None:
        """Draw particles un-jitted to know their traces, and run those that share one."""
        of_trace: dict[BranchingTrace, list[tuple[int, Draws | None]]] = {}
        for member in members.tolist():
            handler = BranchHandler(trace, self._cache.also_branching, goes_on=True)
            whole, draws = drawn(handler, self._kind.particle, *self._one(member))
            of_trace.setdefault(whole, []).append((member, draws))
        for whole, particles in of_trace.items():
            own = [member for member, _ in particles]
            self._cache.count(self._kind, whole, len(own))
            rare = self._cache.rare(self._kind, whole, *self._one(own[0]), particles[0][1])
            results = [rare(self._inputs(*one)) for one in particles]
            numbers = np.array(jax.device_get([numbers for numbers, *_ in results]), jnp.result_type(float))
            parts = [jax.tree.map(lambda leaf: np.asarray(leaf)[None], ragged) for _, ragged, _ in results]
            ragged = [scattered(nodes, list(np.arange(len(own))[:, None])) for nodes in zip(*parts, strict=True)]
            values = tuple(values for *_, values in results)
            group = Group(whole, np.array(own), None, rare, values)
            self._finish(group, numbers.reshape(len(own), -1), ragged, rare.layout)

    def _one(self, member: int) -> tuple[Programs, Index]:
        """The programs of the datum of a particle, and which one it is."""
        datum, number = self._pairs[member].tolist()
        index = Index(number, None if self._kind.data.axes is None else datum)
        if datum not in self._of_datum:
            self._of_datum[datum] = self._kind.data.take(self._programs, index.datum)
        return self._of_datum[datum], index

    def _inputs(self, member: int, draws: Draws | None) -> list[Any]:
        programs, index = self._one(member)
        numbers = index.particle, index.datum
        return [*split_floats(programs.params)[0], *jax.tree.leaves((programs, numbers, draws))]

    def _finish(self, group: Group, numbers: np.ndarray, ragged: list[Ragged], layout: Layout | None) -> None:
        self._lay_out(numbers.shape[1], layout)
        self.results[group.members] = numbers
        self._ragged.append(ragged)
        self.groups.append(group)
        self._traces.add(group.trace)

    def _lay_out(self, num: int, layout: Layout | None) -> None:
        if self.layout is None:
            self.results = np.zeros((len(self._pairs), num), jnp.result_type(float))
            self.layout = layout
        check_alike([self.layout, layout])

    def gradients(self, cotangents: np.ndarray) -> list[jax.Array]:
        """Gradients of all parameters that are floats, given the cotangents of `results`."""
        grads = self._grads
        for tree, members, pullback in self.tree_groups:  # nothing comes back to those that have left
            if pullback is None:
                pullback = tree.forward(self._programs, self._pairs[members]).pullback
            grads, _ = tree.backward(pullback, cotangents[members], grads)
        for group in self.groups:
            weights = cotangents[group.members]
            if group.compiled is not None:
                *_, grads = group.compiled(self._programs, self._pairs[group.members], weights, grads)
            elif group.rare is not None:
                for values, of_one in zip(group.values, weights, strict=True):
                    grads = group.rare.gradients(values, list(of_one), grads)
        return grads


def _first(num: int, leaf: jax.Array) -> np.ndarray:
    """The numbers of so many particles, without those of the padding."""
    return np.asarray(leaf)[:num]


def _merged(
    frontier: Iterable[tuple[BranchingTrace, np.ndarray]],
) -> list[tuple[BranchingTrace, np.ndarray]]:
    """All particles of a trace together, whichever parts they have run in."""
    of_trace: dict[BranchingTrace, list[np.ndarray]] = {}
    for trace, members in frontier:
        of_trace.setdefault(trace, []).append(members)
    return [(trace, np.concatenate(parts)) for trace, parts in of_trace.items()]


def _parts(trace: BranchingTrace, members: np.ndarray, max_size: int | None) -> list[tuple[BranchingTrace, np.ndarray]]:
    """No more particles at a time than `max_size`, padding included."""
    size = len(members) if max_size is None else max((s for s in SIZES if s <= max_size), default=SIZES[0])
    return [(trace, members[start : start + size]) for start in range(0, len(members), size)]


@partial(jax.jit, keep_unused=True)  # on the devices of the parameters
def _zeros_like(floats: list[jax.Array]) -> list[jax.Array]:
    return [jnp.zeros_like(leaf) for leaf in floats]
