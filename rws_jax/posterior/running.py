"""Particles of trained programs, run in whichever way the options say: compiled as a whole where programs can be."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, TypeVar

import jax

from rws_jax.checks.arguments import explain_call
from rws_jax.checks.params import check_value
from rws_jax.checks.sites import fail_empty_plate
from rws_jax.core.errors import is_own
from rws_jax.core.layers import ProgramFn
from rws_jax.core.sites import Site
from rws_jax.core.trees import is_traced
from rws_jax.execution.branching.errors import BranchingSiteError, note_one_datum
from rws_jax.execution.devices import automatic, on_automatic_axes
from rws_jax.execution.executor import ParticleFn
from rws_jax.options import ExecutionOptions
from rws_jax.programs.param_sites import ParamSites
from rws_jax.programs.predict import Kept
from rws_jax.programs.program import Programs

T = TypeVar("T")


def run(particle: ParticleFn[T], programs: Programs, num: int, execution: ExecutionOptions) -> T:
    """Run `particle` for indices 0 to `num` - 1, of all data.

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
            with on_automatic_axes(programs) as placed:
                return executor(particle, placed, num)
        compiled = _compiled_of(*(program.fn for program in programs.all))
        try:
            if not compiled.branches:
                compiled.check_params(particle, programs, execution)
                return compiled.run(particle, programs, num, execution)
        except BranchingSiteError:  # whether programs branch is known only once they run
            compiled.branches = True
        except (TypeError, IndexError) as error:  # of these kinds are JAX's errors on traced values
            if not is_own(error) and not is_traced(programs):
                executor(particle, programs, 1)  # un-jitted, it names what Python has to know
            raise
        with on_automatic_axes(programs) as placed:
            if executor.data.count(placed) != 0:
                compiled.check_params(particle, placed, execution)
            return executor(particle, placed, num)
    except AssertionError as error:
        if "size of plate" not in str(error):
            raise
        fail_empty_plate(error)
    except (TypeError, ValueError) as error:
        if executor.data.axes is None and not is_own(error):
            note_one_datum(error, programs.arguments)
        if isinstance(error, TypeError) and not is_own(error):
            args, kwargs = programs.arguments
            own_args = tuple(arg for arg in args if not isinstance(arg, Kept))  # which particles take for themselves
            explain_call(error, {program.role: program.fn for program in programs.all}, own_args, kwargs)
        raise


class _Compiled:
    """What has been compiled of some programs, and the param sites whose values have to be checked.

    Functions of JAX are given arrays alone. All else, programs and what these close over, JAX would keep as long as it
    has room.
    """

    def __init__(self) -> None:
        self.branches = False  # whether Python branches on what is drawn, so that no program is compiled as a whole
        self._runs: dict[Hashable, Callable[[list[Any]], Any]] = {}
        self._param_sites: dict[Hashable, list[Site]] = {}

    def run(self, particle: ParticleFn, programs: Programs, num: int, execution: ExecutionOptions) -> Any:
        """Run all particles, compiled."""
        leaves, structure = jax.tree.flatten(programs)
        kind = particle, num, execution, structure
        if kind not in self._runs:
            of_programs = _of_programs(particle, num, execution)
            self._runs[kind] = jax.jit(lambda leaves: of_programs(jax.tree.unflatten(structure, leaves)))
        return self._runs[kind](leaves)

    def check_params(self, particle: ParticleFn, programs: Programs, execution: ExecutionOptions) -> None:
        """Hold the values of parameters against the sites that they are for.

        These are those of one particle, which runs the first time: un-jitted where programs branch, else traced.
        """
        leaves, structure = jax.tree.flatten(programs)
        kind = particle, execution, structure
        if kind not in self._param_sites:
            sites = ParamSites()
            with sites:
                if self.branches:
                    execution.executor().one(particle, programs)
                else:
                    of_programs = _of_programs(particle, 1, execution)
                    jax.eval_shape(lambda leaves: of_programs(jax.tree.unflatten(structure, leaves)), leaves)
            self._param_sites[kind] = sites.found
        for site in self._param_sites[kind]:
            values = (programs.model if site["role"] == "model" else programs.guide).params or {}
            check_value(site["role"], site | {"value": values[site["name"]]})


def _of_programs(particle: ParticleFn[T], num: int, execution: ExecutionOptions) -> Callable[[Programs], T]:
    return automatic(lambda programs: execution.executor()(particle, programs, num))


@lru_cache(maxsize=64)  # what has been compiled of the others goes
def _compiled_of(*fns: ProgramFn) -> _Compiled:
    return _Compiled()
