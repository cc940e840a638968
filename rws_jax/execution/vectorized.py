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
from rws_jax.execution.data_axes import ALL_DATA, Data
from rws_jax.execution.devices import automatic_sharding
from rws_jax.execution.executor import Executor, ParticleFn
from rws_jax.programs.program import Index, Programs

T = TypeVar("T")


@dataclass(frozen=True)
class Vectorized(Executor):
    """All particles at once."""

    data: Data = ALL_DATA
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
                num_data = self.data.count(programs)
                if num_data is None:
                    return run(programs, None)
                in_axes = 0, self.data.axes
                return jax.vmap(of_datum, in_axes, out_axes=1)(jnp.arange(num_data), programs.arguments.args)
        except CONCRETIZATION_ERRORS as error:
            fail_static(error)
