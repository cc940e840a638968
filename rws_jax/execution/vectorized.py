"""Particles that are mapped over: one trace for all of them and all data, by `jax.vmap`, on one device or many."""

from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from rws_jax.checks.control_flow import fail_static
from rws_jax.core.errors import CONCRETIZATION_ERRORS
from rws_jax.execution.branching.handler import no_branching
from rws_jax.execution.data_axes import DataAxes, num_data
from rws_jax.execution.devices import automatic_sharding
from rws_jax.execution.executor import Executor, ParticleFn
from rws_jax.programs.program import Index, Programs

T = TypeVar("T")


@dataclass(frozen=True)
class Vectorized(Executor):
    """All particles at once."""

    data_axes: DataAxes = None
    particle_sharding: NamedSharding | None = None

    def __call__(self, particle: ParticleFn[T], programs: Programs, num: int) -> T:
        """Map over all particles."""
        return self.over(particle, programs, jnp.arange(num))

    def over(self, particle: ParticleFn[T], programs: Programs, particles: jax.Array) -> T:
        """Map over some particles, given by their numbers; each device runs its part of them."""
        if self.particle_sharding is not None:
            particles = lax.with_sharding_constraint(particles, automatic_sharding(self.particle_sharding))

        def run(programs: Programs, datum: jax.Array | None) -> T:
            return jax.vmap(lambda number: particle(programs, Index(number, datum)))(particles)

        def of_datum(datum: jax.Array, args: tuple) -> T:
            return run(programs.with_args(args), datum)

        try:
            with no_branching():
                if self.data_axes is None:
                    return run(programs, None)
                args = programs.arguments.args
                data = jnp.arange(num_data(args, self.data_axes))
                return jax.vmap(of_datum, (0, self.data_axes), out_axes=1)(data, args)
        except CONCRETIZATION_ERRORS as error:
            fail_static(error)
