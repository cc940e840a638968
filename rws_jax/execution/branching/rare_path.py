"""One branching trace that few particles have come along: interpreted, as compiling it would not pay."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from rws_jax.core.interpreted import Interpreted
from rws_jax.core.site_functions import compiled_sites
from rws_jax.core.trees import split_floats
from rws_jax.execution.branching.handler import BranchHandler
from rws_jax.execution.branching.particle import run_one
from rws_jax.execution.branching.trace import BranchingTrace
from rws_jax.execution.executor import ParticleFn
from rws_jax.execution.ragged import Layout, Ragged, split
from rws_jax.programs.program import Index, Programs


def branching_trace(handler: BranchHandler, particle: ParticleFn, programs: Programs, index: Index) -> BranchingTrace:
    """Draw one particle un-jitted, within a handler that goes on, to know its branching trace."""
    draw: Callable = getattr(particle, "draw", particle)

    def nothing(programs: Programs, index: Index) -> None:
        draw(programs, index)

    with compiled_sites():
        run_one(handler, nothing, programs, index)
    return tuple(handler.taken)


class RarePath:
    """What a particle computes along a branching trace: traced for programs of one datum, then interpreted."""

    def __init__(
        self,
        handler: BranchHandler,
        particle: ParticleFn,
        programs: Programs,
        index: Index,
        check: Callable[[BranchHandler], None],
    ) -> None:
        self.layout: Layout | None = None  # of the results

        def run(floats: list[Any], programs: Programs, numbers: tuple) -> tuple[list[Any], list[Ragged]]:
            _, with_floats = split_floats(programs.params)
            programs = programs.with_params(with_floats(floats))
            with jax.ensure_compile_time_eval():  # Python may compute with the constants of the trace
                results, ragged, self.layout = split(run_one(handler, particle, programs, Index(*numbers)))
            check(handler)
            return results, ragged

        floats, _ = split_floats(programs.params)
        with compiled_sites():
            jaxpr, shapes = jax.make_jaxpr(run, return_shape=True)(floats, programs, (index.particle, index.datum))
        self._num = len(shapes[0])
        self._ragged = jax.tree.structure(shapes[1])
        self._interpreted = Interpreted(jaxpr, range(len(floats)))

    def __call__(self, inputs: Sequence[Any]) -> tuple[list[jax.Array], list[Ragged], list[Any]]:
        """Results of one particle, numbers and ragged ones, and what its `gradients` need.

        Args:
          inputs: floats among the parameters, leaves of the programs of its datum, its number and datum.
        """
        outputs, values = self._interpreted(inputs)
        return outputs[: self._num], self._ragged.unflatten(outputs[self._num :]), values

    def gradients(self, values: list[Any], cotangents: Sequence[Any]) -> list[Any]:
        """Gradients of floats among the parameters, None for zeros, given cotangents of the numbers."""
        return self._interpreted.gradients(values, cotangents)
