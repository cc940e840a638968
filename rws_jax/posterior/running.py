"""Particles of trained programs, run in whichever way the options say: compiled as a whole where programs can be."""

from functools import partial
from typing import TypeVar

import jax

from rws_jax.core.errors import is_own
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
    if execution.one_by_one:
        return executor(particle, programs, num)
    try:
        return _compiled(particle, num, execution, programs)
    except BranchingSiteError:  # whether programs branch is known only once they run
        return executor(particle, programs, num)
    except (TypeError, IndexError) as error:  # of these kinds are JAX's errors on traced values
        if not is_own(error) and not is_traced(programs):
            executor(particle, programs, 1)  # un-jitted, it names what Python has to know
        raise


@partial(jax.jit, static_argnums=(0, 1, 2))
@automatic
def _compiled(particle: ParticleFn[T], num: int, execution: ExecutionOptions, programs: Programs) -> T:
    return execution.executor()(particle, programs, num)
