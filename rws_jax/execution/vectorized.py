"""Particles that are mapped over: one trace for all of them and all data, by `jax.vmap`, on one device or many."""

from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from rws_jax.checks.arguments import warn_of_rbg
from rws_jax.checks.control_flow import fail_static
from rws_jax.core.errors import CONCRETIZATION_ERRORS, is_own
from rws_jax.core.trees import is_traced
from rws_jax.execution.branching.handler import no_branching
from rws_jax.execution.compiles import explain
from rws_jax.execution.data import ALL_DATA, Data
from rws_jax.execution.devices import automatic_sharding
from rws_jax.execution.executor import Executor, ParticleFn
from rws_jax.programs.program import Arguments, Index, Programs

T = TypeVar("T")
# The axis of particles by name: those that run together may exchange results, by `jax.lax.all_gather`.
PARTICLES = "rws_jax.particles"


@dataclass(frozen=True)
class Vectorized(Executor):
    """All particles at once."""

    data: Data = ALL_DATA
    particle_sharding: NamedSharding | None = None

    def __call__(self, particle: ParticleFn[T], programs: Programs, num: int) -> T:
        """Map over all particles."""
        return self.over(jnp.arange(num), particle, programs)

    def over(self, numbers: jax.Array, particle: ParticleFn[T], programs: Programs) -> T:
        """Map over the particles of these numbers; each device runs its part of them."""
        if self.particle_sharding is not None:
            warn_of_rbg(programs.rng_keys, "particle_sharding")
            numbers = lax.with_sharding_constraint(numbers, automatic_sharding(self.particle_sharding))
        try:
            with no_branching():
                num_data = self.data.count(programs)
                if num_data is None:
                    of_all = jax.vmap(lambda number: particle(programs, Index(number)), axis_name=PARTICLES)
                    return of_all(numbers)
                (args, kwargs), (axes, by_keyword) = programs.arguments, self.data.in_axes(programs.arguments)
                mapped = {name: kwargs[name] for name, axis in by_keyword.items() if axis is not None}

                def of_one(number: jax.Array, datum: jax.Array, args: tuple, mapped: dict) -> T:
                    own = programs.with_arguments(Arguments(args, kwargs | mapped))
                    return particle(own, Index(number, datum))

                of_datum = jax.vmap(of_one, in_axes=(0, None, None, None), axis_name=PARTICLES)
                of_all = jax.vmap(of_datum, in_axes=(None, 0, axes, 0), out_axes=1)
                return of_all(numbers, jnp.arange(num_data), args, mapped)
        except (TypeError, IndexError) as error:  # of these kinds are JAX's errors on traced values
            self._explain(error, particle, programs)
            raise

    def _explain(self, error: Exception, particle: ParticleFn, programs: Programs) -> None:
        """Name what Python has to know, if it can be known here; otherwise whoever has the values does."""
        if is_own(error):
            return
        if is_traced(programs.arguments):
            if isinstance(error, CONCRETIZATION_ERRORS):
                fail_static(error)
            return
        datum = None if self.data.count(programs) is None else 0

        def run(programs: Programs, arguments: Arguments) -> None:
            particle(self.data.take(replace(programs, arguments=arguments), datum), Index(0, datum))

        explain(error, run, lax.stop_gradient(programs), programs.arguments, programs.model.fn)
