"""The few traces that most particles come along, of programs with too many of them, compiled as one function.

A loop without bound has one more trace for each round, and few particles take many rounds. Its first rounds are
unrolled; particles that go on leave the tree, and run along their traces one site after the other.
"""

from functools import reduce
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rws_jax.core.trees import split_floats
from rws_jax.execution.branching.handler import BranchHandler, TraceEnded
from rws_jax.execution.branching.trace import BranchingTrace
from rws_jax.execution.branching.unrolled import Along, NotUnrolledError, Unrolled
from rws_jax.execution.data import Data
from rws_jax.execution.executor import ParticleFn
from rws_jax.execution.ragged import Layout, split
from rws_jax.programs.program import Index, Programs

T = TypeVar("T")
TREE = None  # stands for all traces of a tree, where others are named
# Branching sites on a path of the tree. Each round of a rejection loop of three sites takes 0.3 s to trace and 0.5 s to
# compile; the first particle that leaves takes 2.7 s, and each that follows 10 to 100 ms.
TREE_DEPTH = 8
# A tree that branches out takes long to compile, and holds few of the particles: a loop has 8 ends, and a ninth that is
# left over, and with defensive proposals 14 and two.
_MAX_ENDS = 16
_MAX_LEFT = 0.25  # beginnings that are left over, for each end


class Truncated(Unrolled[T]):
    """Computes what a particle does along the traces of few sites.

    Raises `NotUnrolledError` if these are many, or most of them have not ended by then.
    """

    def __init__(self, particle: ParticleFn[T], max_paths: int, also_branching: set[str]) -> None:
        self.handlers: list[BranchHandler] = []  # of all traces
        super().__init__(particle, min(max_paths, _MAX_ENDS), also_branching, self.handlers.append)
        self.left: list[BranchingTrace] = []  # beginnings of all others
        self._left: list[Any] = []

    def __call__(self, programs: Programs, index: Index) -> Along:
        """Compute all, and choose; numbers are missing for a particle that leaves."""
        leaves, structure = jax.tree.flatten((programs, index))
        of_leaves = lambda leaves: self._all_ends(*jax.tree.unflatten(structure, leaves))
        return self._chosen(*jax.make_jaxpr(of_leaves, return_shape=True)(leaves), leaves)

    def _all_ends(self, programs: Programs, index: Index) -> list[Any]:
        self.handlers.clear()
        self._left = []
        ends = super()._all_ends(programs, index)
        self.left = [begun.trace for begun in self._left]
        if len(self.left) > _MAX_LEFT * len(ends):
            raise NotUnrolledError(f"{len(self.left)} of {len(self.left) + len(ends)} paths go on")
        return ends + [ends[0]._replace(is_taken=begun.is_taken, numbers=[], ragged=[]) for begun in self._left]

    def _following(self, begun: Any, end: TraceEnded) -> list[Any]:
        if len(begun.trace) == TREE_DEPTH:
            self._left.append(begun)
            return []
        return super()._following(begun, end)


class Passed(NamedTuple):
    """What particles of a tree compute, arrays; padding included."""

    numbers: jax.Array
    which: jax.Array  # the trace of each, or the beginning that is left over
    pullback: Any  # from cotangents of the numbers to gradients; a pytree


class CompiledTree:
    """Runs particles along all traces of a tree; one function is compiled for each way."""

    trace = TREE

    def __init__(self, particle: ParticleFn, data: Data, size: int, max_paths: int, also_branching: set[str]) -> None:
        self.size = size
        self.layout: Layout | None = None  # of the results, known once it is traced
        self._unrolled = Truncated(particle, max_paths, also_branching)
        self._data = data
        self._forward = jax.jit(self._passed)
        self._backward = jax.jit(self._gradients)

    @property
    def traces(self) -> list[BranchingTrace]:
        """The whole ones, and then the beginnings of all others, the empty one last."""
        return [*self._unrolled.traces, *self._unrolled.left, ()]

    @property
    def handlers(self) -> list[BranchHandler]:
        """Those of the whole traces."""
        return self._unrolled.handlers

    def forward(self, programs: Programs, pairs: np.ndarray) -> Passed:
        """Run particles along the tree.

        Args:
          programs: what they run; all but their parameters is held constant.
          pairs: datum and number of each particle, at most `size` of them.

        Raises:
          NotUnrolledError: if the programs have no such tree.
        """
        filled = np.repeat(pairs[:1], self.size, axis=0)
        filled[: len(pairs)] = pairs
        with _one_context():
            return self._forward(programs, filled)

    def backward(
        self, pullback: Any, cotangents: np.ndarray, grads: list[jax.Array]
    ) -> tuple[list[jax.Array], jax.Array]:
        """Gradients of the floats among the parameters with those of these particles added, and whether they are zero.

        Args:
          pullback: from the way forward.
          cotangents: those of the numbers of the particles; for those that have left, any.
          grads: gradients so far.
        """
        weights = np.zeros((self.size, cotangents.shape[-1]), cotangents.dtype)
        weights[: len(cotangents)] = cotangents
        with _one_context():
            return self._backward(pullback, weights, grads)

    def _passed(self, programs: Programs, pairs: jax.Array) -> Passed:
        floats, with_floats = split_floats(programs.params)

        def of_one(floats: list[jax.Array], datum: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
            index = Index(number, None if self._data.axes is None else datum)
            own = self._data.take(programs.with_params(with_floats(floats)), index.datum)
            result, is_taken = self._unrolled(own, index)
            numbers, ragged, self.layout = split(result)
            if ragged or not numbers:
                raise NotUnrolledError("arrays by name, which are those of the paths that are taken")
            is_taken = jnp.append(is_taken, True)  # the start, for a value that its distribution is not known to draw
            return jnp.stack(numbers), jnp.argmax(is_taken)

        of_all = lambda floats: jax.vmap(of_one, (None, 0, 0))(floats, *pairs.T)
        try:
            numbers, pullback, which = jax.vjp(of_all, floats, has_aux=True)
        except Exception as error:  # by paths it is found whether particles come to it
            raise NotUnrolledError(str(error)) from error
        if self._unrolled.wastes(self.size):
            raise NotUnrolledError("paths that take much work")
        return Passed(numbers, which, pullback)

    def _gradients(
        self, pullback: Any, cotangents: jax.Array, grads: list[jax.Array]
    ) -> tuple[list[jax.Array], jax.Array]:
        (of_these,) = pullback(cotangents)
        is_zero = reduce(jnp.logical_and, (jnp.all(leaf == 0) for leaf in of_these), jnp.array(True))
        return optax.tree.add(grads, of_these), is_zero


def _one_context() -> Any:
    """JAX compiles for a context, and that of the way back has an empty mesh in place of none."""
    return jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh())
