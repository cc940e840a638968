"""What has been compiled of some programs that branch, and what is known of their branching traces."""

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rws_jax.checks.arguments import check_int
from rws_jax.execution.branching.compiled_path import CompiledPath
from rws_jax.execution.branching.compiled_tree import TREE, CompiledTree
from rws_jax.execution.branching.errors import fail_supports
from rws_jax.execution.branching.handler import BranchHandler
from rws_jax.execution.branching.rare_path import RarePath
from rws_jax.execution.branching.trace import BranchingTrace, describe_trace
from rws_jax.execution.data import Data
from rws_jax.execution.executor import ParticleFn
from rws_jax.programs.program import Index, Programs
from rws_jax.programs.run import Draws

# Padded sizes of groups of particles; each trace is compiled once for each size that comes up.
SIZES = tuple(8 * 4**power for power in range(14))
_MAX_PADDING = 16  # times as many particles as there are
_MANY = 50
_MAX_PARTS = 4  # that a group is taken in, as long as ...
_MAX_PARTED = 32  # ... groups of its size have not come as often


class Kind(NamedTuple):
    """What particles compute, for programs and arguments of which structure, precision and shapes; hashable."""

    particle: ParticleFn
    data: Data
    structure: Hashable
    avals: tuple


class PathCache:
    """Compiled paths, the least recently used of which go, and counts of what has run."""

    def __init__(
        self, compile_after: int = 256, max_compiled: int = 1000, max_paths: int = 64, *, trees_at_once: bool = False
    ) -> None:
        hint = "leave it out; it changes no result"
        check_int(compile_after, "compile_after", 0, expected="an int >= 0, a number of particles", hint=hint)
        check_int(max_compiled, "max_compiled", 1, expected="an int >= 1, a number of functions", hint=hint)
        check_int(max_paths, "max_paths", 1, expected="an int >= 1, a number of paths", hint=hint)
        self.compile_after, self.max_compiled, self.max_paths = compile_after, max_compiled, max_paths
        self.trees_at_once = trees_at_once  # a tree is compiled as it is asked for, and not if it is frequent
        self.also_branching: set[str] = set()  # sites that another program annotates than the one that draws them
        self._compiled: OrderedDict[tuple, Any] = OrderedDict()  # paths and trees, by kind, trace and size
        self._rare: OrderedDict[tuple, RarePath] = OrderedDict()  # by kind and trace
        self._sizes: dict[tuple, list[int]] = {}  # those compiled of each kind and trace
        self._num_seen: Counter[tuple] = Counter()  # un-jitted particles along a whole trace
        self._num_parted: Counter[tuple] = Counter()  # by kind, trace and size
        self._without_tree: set[Kind] = set()
        self._frequent: set[tuple] = set()  # kinds and beginnings of traces that are worth to be compiled
        self._supports: dict[tuple[str, str], tuple[str, BranchingTrace]] = {}
        self._warned_of: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """Begin to count paths and un-jitted runs anew."""
        self.traces: set[BranchingTrace] = set()
        self.num_unjitted = 0

    def metrics(self) -> dict[str, jax.Array]:
        """Counts since `begin`, and of what is compiled."""
        counts = {"num_paths": len(self.traces), "num_compiled": len(self._compiled), "num_unjitted": self.num_unjitted}
        return {name: jnp.array(count) for name, count in counts.items()}

    def find(self, kind: Kind, trace: BranchingTrace, num: int) -> CompiledPath | None:
        """A function for particles on a trace, or on the beginning of one, so many or a part of them; None: it is rare.

        It is not if as many have come to this point together, or in all along one whole trace that begins so.
        """

        def new(size: int) -> CompiledPath:
            return CompiledPath(kind.particle, kind.data, trace, size, self.also_branching, self.check_supports)

        return self._find(kind, trace, num, new)

    def find_tree(self, kind: Kind, num: int) -> CompiledTree | None:
        """A function of the tree of few traces for particles, so many or a part of them; None: there is none so far."""
        if self.max_paths == 1 or kind in self._without_tree:
            return None

        def new(size: int) -> CompiledTree:
            return CompiledTree(kind.particle, kind.data, size, self.max_paths, self.also_branching)

        return self._find(kind, TREE, num, new)

    def drop_trees(self, kind: Kind) -> None:
        """The programs have no tree, or one of which derivatives are not finite along traces that are not taken."""
        self._without_tree.add(kind)
        for size in self._sizes.pop((kind, TREE), []):
            del self._compiled[kind, TREE, size]

    def _find(self, kind: Kind, trace: Any, num: int, new: Callable[[int], Any]) -> Any:
        sizes = self._sizes.get((kind, trace), [])
        fitting = [size for size in sizes if num <= size <= _MAX_PADDING * num]
        if fitting:
            key = kind, trace, min(fitting)
            self._compiled.move_to_end(key)
            return self._compiled[key]
        is_rare = num <= self.compile_after and (kind, trace) not in self._frequent
        if not sizes and is_rare and not (trace is TREE and self.trees_at_once):
            return None
        size = next(size for size in SIZES if size >= num)
        if sizes and num <= _MAX_PARTS * max(sizes):
            self._num_parted[kind, trace, size] += 1
            if self._num_parted[kind, trace, size] <= _MAX_PARTED:
                return self._compiled[kind, trace, max(sizes)]
        return new(size)

    def count(self, kind: Kind, trace: BranchingTrace, num: int) -> None:
        """Count particles that have come along a whole trace un-jitted."""
        self.num_unjitted += num
        if len(self._num_seen) > _MANY * self.max_compiled:  # rare traces without end
            self._num_seen.clear()
            self._num_parted.clear()
            self._frequent.clear()
        self._num_seen[kind, trace] += num
        self._num_seen[kind, TREE] += num
        if self._num_seen[kind, TREE] > self.compile_after:
            self._frequent.add((kind, TREE))
        if self._num_seen[kind, trace] > self.compile_after:
            self._frequent |= {(kind, trace[:length]) for length in range(len(trace) + 1)}

    def rare(
        self, kind: Kind, trace: BranchingTrace, programs: Programs, index: Index, draws: Draws | None
    ) -> RarePath:
        """A rare trace as it was traced, or is now, by one particle of one datum and its draws."""
        key = kind, trace
        if key not in self._rare:
            handler = BranchHandler(trace, self.also_branching)
            self._rare[key] = RarePath(handler, kind.particle, programs, index, draws, self.check_supports)
        self._rare.move_to_end(key)
        while len(self._rare) > self.max_compiled:
            self._rare.popitem(last=False)
        return self._rare[key]

    def keep(self, kind: Kind, compiled: CompiledPath | CompiledTree) -> None:
        """Keep a function once it has been called: an interruption while it is compiled leaves all as it was."""
        key = kind, compiled.trace, compiled.size
        if key not in self._compiled:
            self._sizes.setdefault(key[:2], []).append(compiled.size)
        self._compiled[key] = compiled
        while len(self._compiled) > self.max_compiled:
            (*place, size), _ = self._compiled.popitem(last=False)
            sizes = self._sizes[*place]
            sizes.remove(size)
            if not sizes:  # the trace is rare again
                del self._sizes[*place]
                self._num_seen.pop(tuple(place), None)
                self._frequent.discard(tuple(place))

    def add_branching(self, *names: str) -> None:
        """A site branches in another program than the one that draws it, which has to stop there and compile anew."""
        self.also_branching.update(names)
        self._compiled.clear()
        self._sizes.clear()
        self._rare.clear()
        self._without_tree.clear()

    def check_supports(self, handler: BranchHandler) -> None:
        """A site of one name has one kind of values, on all branching traces."""
        trace = tuple(handler.taken)
        for (role, name), kind in handler.supports.items():
            other_kind, other_trace = self._supports.setdefault((role, name), (kind, trace))
            if kind != other_kind:
                fail_supports(role, name, (other_kind, kind), (other_trace, trace))

    def warn_of_values(self, trace: BranchingTrace, name: str, num_values: int, num: int) -> None:
        """A continuous site, say, has as many branching traces as particles."""
        if num_values == num >= _MANY and name not in self._warned_of:
            self._warned_of.add(name)
            warnings.warn(
                f"branching site {name!r} has drawn {num} different values for {num} particles, on"
                f" {describe_trace(trace)}: every particle is a path of its own, and compiled for itself. Branch on a"
                " discrete site.",
                stacklevel=2,
            )
