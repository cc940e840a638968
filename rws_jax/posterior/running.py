"""Particles of trained programs, run in whichever way the options say: compiled as a whole where programs can be."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

import jax

from rws_jax.checks.sites import fail_empty_plate
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
    try:
        if execution.one_by_one:
            return executor(particle, programs, num)
        try:
            _check_params(particle, programs, execution)
            return _compiled(particle, num, execution, programs)
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


@partial(jax.jit, static_argnums=(0, 1, 2))
@automatic
def _compiled(particle: ParticleFn[T], num: int, execution: ExecutionOptions, programs: Programs) -> T:
    return execution.executor()(particle, programs, num)


def _check_params(particle: ParticleFn, programs: Programs, execution: ExecutionOptions) -> None:
    """Trace one particle with known parameters, whose values are then held against their constraints.

    Not again for the same arrays.
    """
    leaves, structure = jax.tree.flatten(programs.params)
    if is_traced(leaves):
        return
    key = particle, execution, programs.model.fn, programs.guide.fn, structure
    if all(kept() is leaf for kept, leaf in zip(_CHECKED.get(key, [lambda: None]), leaves, strict=False)):
        return

    def trace(unknown: Programs) -> Any:
        return execution.executor()(particle, unknown.with_params(programs.params), 1)

    jax.eval_shape(trace, programs.with_params((None, None)))
    _CHECKED[key] = [_reference(leaf) for leaf in leaves]
    if len(_CHECKED) > _MAX_CHECKED:
        _CHECKED.popitem(last=False)


_CHECKED: OrderedDict[Hashable, list[Callable[[], Any]]] = OrderedDict()  # by programs, the leaves checked last
_MAX_CHECKED = 100


def _reference(leaf: Any) -> Callable[[], Any]:
    """Gives a leaf, as long as somebody else keeps it if it is an array."""
    return (lambda: leaf) if isinstance(leaf, int | float | complex) else weakref.ref(leaf)
