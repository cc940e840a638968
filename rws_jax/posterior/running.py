"""Particles of trained programs, run in whichever way the options say: compiled as a whole where programs can be."""

import weakref
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, TypeVar

import jax

from rws_jax.checks.sites import fail_empty_plate
from rws_jax.core.errors import is_own
from rws_jax.core.layers import ProgramFn
from rws_jax.core.trees import is_traced
from rws_jax.execution.branching.errors import BranchingSiteError
from rws_jax.execution.devices import automatic
from rws_jax.execution.executor import ParticleFn
from rws_jax.options import ExecutionOptions
from rws_jax.programs.program import Programs

T = TypeVar("T")


def run(particle: ParticleFn[T], programs: Programs, num: int, execution: ExecutionOptions) -> T:
    """Run `particle` for indices 0 to `num` - 1, of all data; nothing of it is differentiated.

    Args:
      particle: what one of them computes, a value: equal ones share what is compiled.
      programs: what it runs, seeded by keys of their own.
      num: how many there are, of each datum.
      execution: how they run.

    Returns:
      Results side by side, leaves of shape ``(num, *data, *result)``.
    """
    executor = execution.executor()
    try:
        if execution.one_by_one:
            return executor(particle, programs, num)
        try:
            compiled = _compiled_of(*(program.fn for program in programs.all))
            compiled.check_params(particle, programs, execution)
            return compiled.run(particle, programs, num, execution)
        except BranchingSiteError:  # whether programs branch is known only once they run
            if executor.data.count(programs) != 0:
                executor.one(particle, programs)  # un-jitted, where the values of parameters are checked
            return executor(particle, programs, num)
        except (TypeError, IndexError) as error:  # of these kinds are JAX's errors on traced values
            if not is_own(error) and not is_traced(programs):
                executor(particle, programs, 1)  # un-jitted, it names what Python has to know
            raise
    except AssertionError as error:
        if "size of plate" not in str(error):
            raise
        fail_empty_plate(error)


class _Compiled:
    """What has been compiled of some programs, and the parameters whose values have been checked.

    Functions of JAX are given arrays alone. All else, programs and what these close over, JAX would keep as long as it
    has room.
    """

    def __init__(self) -> None:
        self._runs: dict[Hashable, Callable[[list[Any]], Any]] = {}
        self._checked: dict[Hashable, list[Callable[[], Any]]] = {}  # the leaves that were checked last

    def run(self, particle: ParticleFn, programs: Programs, num: int, execution: ExecutionOptions) -> Any:
        """Run all particles, compiled."""
        leaves, structure = jax.tree.flatten(programs)
        kind = particle, num, execution, structure
        if kind not in self._runs:
            of_programs = automatic(lambda programs: execution.executor()(particle, programs, num))
            self._runs[kind] = jax.jit(lambda leaves: of_programs(jax.tree.unflatten(structure, leaves)))
        return self._runs[kind](leaves)

    def check_params(self, particle: ParticleFn, programs: Programs, execution: ExecutionOptions) -> None:
        """Trace one particle with known parameters, whose values are then held against their constraints.

        Not again for the same arrays.
        """
        params, structure = jax.tree.flatten(programs.params)
        if is_traced(params):
            return
        kind = particle, execution, structure
        if all(kept() is leaf for kept, leaf in zip(self._checked.get(kind, [lambda: None]), params, strict=False)):
            return
        leaves, rest = jax.tree.flatten(programs.with_params((None, None)))

        def trace(leaves: list[Any]) -> Any:
            unknown = jax.tree.unflatten(rest, leaves)
            return execution.executor()(particle, unknown.with_params(programs.params), 1)

        jax.eval_shape(trace, leaves)
        self._checked[kind] = [_reference(leaf) for leaf in params]


@lru_cache(maxsize=64)  # what has been compiled of the others goes
def _compiled_of(*fns: ProgramFn) -> _Compiled:
    return _Compiled()


def _reference(leaf: Any) -> Callable[[], Any]:
    """Gives a leaf, as long as somebody else keeps it if it is an array."""
    return (lambda: leaf) if isinstance(leaf, int | float | complex) else weakref.ref(leaf)
