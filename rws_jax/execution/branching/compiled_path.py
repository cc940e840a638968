"""One branching trace, compiled for a number of particles: what comes next on it, or results and their gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from rws_jax.core.trees import split_floats
from rws_jax.execution.branching.handler import BranchHandler, TraceEnded
from rws_jax.execution.branching.particle import run_along
from rws_jax.execution.branching.trace import BranchingTrace
from rws_jax.execution.data import Data
from rws_jax.execution.executor import ParticleFn
from rws_jax.execution.ragged import Layout, Ragged, split
from rws_jax.programs.program import Programs


class CompiledPath:
    """Draws what comes next on a branching trace or, at the end of the programs, computes results and gradients.

    One function does both, so that each trace is compiled once for each size: the way back is a branch of it.
    """

    def __init__(
        self,
        particle: ParticleFn,
        data: Data,
        trace: BranchingTrace,
        size: int,
        also_branching: set[str],
        check: Callable[[BranchHandler], None],
    ) -> None:
        self.trace, self.size = trace, size
        self.stops_at: str | None = None  # known once it is traced
        self.layout: Layout | None = None  # of the results, likewise
        self._shape: tuple[int, ...] | None = None

        def run(programs: Programs, datum: jax.Array, number: jax.Array) -> tuple[jax.Array, list[Ragged]]:
            with jax.ensure_compile_time_eval():  # Python may compute with the constants of the trace
                handler = BranchHandler(trace, also_branching)
                try:
                    result = run_along(handler, particle, programs, data, datum, number)
                except TraceEnded as end:
                    self.stops_at = end.name
                    return end.value, []
            check(handler)
            numbers, ragged, self.layout = split(result)
            return jnp.stack(numbers) if numbers else jnp.zeros(0), ragged

        self._of_all = jax.jit(jax.vmap(run, (None, 0, 0)))  # jitted, to be traced once
        self._call = jax.jit(self._function)

    def __call__(
        self, programs: Programs, pairs: np.ndarray, cotangents: np.ndarray | None, grads: list[jax.Array]
    ) -> tuple[jax.Array, list[Ragged], list[jax.Array]]:
        """Run particles along the trace.

        Args:
          programs: what they run; all but their parameters is held constant.
          pairs: datum and number of each particle, at most `size` of them.
          cotangents: those of the results, if gradients are asked for.
          grads: gradients of the floats among the parameters so far.

        Returns:
          Values at the next site, or results, numbers and ragged ones, of `size` particles, and the gradients with
          those of these particles added.
        """
        filled = np.repeat(pairs[:1], self.size, axis=0)
        filled[: len(pairs)] = pairs
        with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
            # JAX compiles for a context, and that of the way back has an empty mesh in place of none.
            shape = self._shape or jax.eval_shape(self._of_all, programs, *filled.T)[0].shape
            self._shape = shape
            weights = np.zeros(shape, jnp.result_type(float))  # none for those that fill it up
            if cotangents is not None:
                weights[: len(pairs)] = cotangents
            return self._call(programs, filled, weights, cotangents is not None, grads)

    def _function(
        self,
        programs: Programs,
        pairs: jax.Array,
        cotangents: jax.Array,
        is_way_back: jax.Array,
        grads: list[jax.Array],
    ) -> tuple[jax.Array, list[Ragged], list[jax.Array]]:
        floats, with_floats = split_floats(programs.params)
        of_floats = lambda floats: self._of_all(programs.with_params(with_floats(floats)), *pairs.T)
        if self.stops_at is not None:
            return *of_floats(floats), grads

        def backward() -> tuple[jax.Array, list[Ragged], list[jax.Array]]:
            results, pullback, ragged = jax.vjp(of_floats, floats, has_aux=True)
            grads_of_these = pullback(cotangents.astype(results.dtype))
            return jnp.zeros_like(results), ragged, optax.tree.add(grads, *grads_of_these)

        return lax.cond(is_way_back, backward, lambda: (*of_floats(floats), grads))
