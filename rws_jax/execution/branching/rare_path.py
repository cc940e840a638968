"""One branching trace that few particles have come along: interpreted, as compiling it would not pay."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

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
from rws_jax.programs.run import Draws


@runtime_checkable
class DrawsFirst(Protocol):
    """A particle that computes ``score(programs, index, draw(programs, index))``."""

    def draw(self, programs: Programs, index: Index) -> Draws: ...

    def score(self, programs: Programs, index: Index, draws: Draws) -> Any: ...


class Drawn(NamedTuple):
    """The branching trace of a particle, and what it has drawn; None if it computes all at once."""

    trace: BranchingTrace
    draws: Draws | None


def drawn(handler: BranchHandler, particle: ParticleFn, programs: Programs, index: Index) -> Drawn:
    """Draw one particle un-jitted, within a handler that goes on, to know its branching trace."""
    draws: list[Draws] = []

    def draw(programs: Programs, index: Index) -> None:
        if isinstance(particle, DrawsFirst):
            draws.append(particle.draw(programs, index))
        else:
            particle(programs, index)

    with compiled_sites():
        run_one(handler, draw, programs, index)
    return Drawn(tuple(handler.taken), draws[0] if draws else None)


class RarePath:
    """What a particle computes along a branching trace: traced for programs of one datum, then interpreted.

    Its draws, which are known by then, are inputs.
    """

    def __init__(
        self,
        handler: BranchHandler,
        particle: ParticleFn,
        programs: Programs,
        index: Index,
        draws: Draws | None,
        check: Callable[[BranchHandler], None],
    ) -> None:
        self.layout: Layout | None = None  # of the results
        constants = {value.name: value.array for value in handler.trace}

        def run(
            floats: list[Any], programs: Programs, numbers: tuple, draws: Draws | None
        ) -> tuple[list[Any], list[Ragged]]:
            _, with_floats = split_floats(programs.params)
            programs, one = programs.with_params(with_floats(floats)), particle
            if draws is not None and isinstance(particle, DrawsFirst):
                handler.taken = list(handler.trace)
                known = {name: constants.get(name, value) for name, value in draws.latents.items()}
                one = lambda programs, index: particle.score(programs, index, draws._replace(latents=known))
            with jax.ensure_compile_time_eval():  # Python may compute with the constants of the trace
                results, ragged, self.layout = split(run_one(handler, one, programs, Index(*numbers)))
            check(handler)
            return results, ragged

        floats, _ = split_floats(programs.params)
        with compiled_sites():
            trace = jax.make_jaxpr(run, return_shape=True)
            jaxpr, (results, ragged) = trace(floats, programs, (index.particle, index.datum), draws)
        self._num, self._ragged = len(results), jax.tree.structure(ragged)
        self._interpreted = Interpreted(jaxpr, range(len(floats)))

    def __call__(self, inputs: Sequence[Any]) -> tuple[list[jax.Array], list[Ragged], list[Any]]:
        """Results of one particle, numbers and ragged ones, and what its `gradients` need.

        Args:
          inputs: floats among the parameters, leaves of the programs of its datum, its number and datum, and its draws.
        """
        outputs, values = self._interpreted(inputs)
        return outputs[: self._num], self._ragged.unflatten(outputs[self._num :]), values

    def gradients(self, values: list[Any], cotangents: Sequence[Any], grads: list[jax.Array]) -> list[jax.Array]:
        """Gradients of the floats among the parameters so far, with those of a particle added."""
        return self._interpreted.gradients(values, cotangents, grads)
