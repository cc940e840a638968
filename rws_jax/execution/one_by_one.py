"""Particles that run one by one and un-jitted: Python may branch on what they draw, and look at what they compute."""

from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from numpyro.handlers import block

from rws_jax.checks.control_flow import fail_jitted
from rws_jax.core.errors import CONCRETIZATION_ERRORS
from rws_jax.execution.branching.handler import no_branching
from rws_jax.execution.data import ALL_DATA, Data
from rws_jax.execution.executor import Executor, ParticleFn, as_one_unit, side_by_side
from rws_jax.programs.program import Index, Programs

T = TypeVar("T")


@dataclass(frozen=True)
class OneByOne(Executor):
    """Each particle on its own."""

    data: Data = ALL_DATA

    @property
    def ragged(self) -> bool:
        """Python may branch on whatever is drawn."""
        return True

    @property
    def in_python(self) -> bool:
        """Python has to know what is drawn."""
        return True

    def __call__(self, particle: ParticleFn[T], programs: Programs, num: int) -> T:
        """Loop over data and particles in Python."""
        is_alone = self.runs_alone(particle, programs)

        def of_datum(datum: int | None) -> list[T]:
            of_one = self.data.take(programs, datum)
            results = [particle(of_one, Index(number, datum, is_alone)) for number in range(num)]
            return [as_one_unit(result) if is_alone else result for result in results]

        try:
            with no_branching():
                num_data = self.data.count(programs)
                if num_data is None:
                    return side_by_side(of_datum(None))
                results = side_by_side([result for datum in range(num_data) for result in of_datum(datum)])
                apart = lambda leaf: jnp.swapaxes(leaf.reshape(num_data, num, *leaf.shape[1:]), 0, 1)
                return jax.tree.map(apart, results)
        except CONCRETIZATION_ERRORS as error:
            fail_jitted(error)

    def runs_alone(self, particle: ParticleFn[T], programs: Programs) -> bool:
        """Whether sites, and so units, may depend on what is drawn: if programs cannot be traced, they may.

        It is a matter of the programs, not of what the particles of one call happen to draw.
        """

        def shape_of(datum: jax.Array | int | None, number: jax.Array) -> T:
            return particle(self.data.take(programs, datum), Index(number, datum))

        number, num_data = jnp.zeros((), jnp.int32), self.data.count(programs)
        try:
            with block(), no_branching():  # handlers further out would give values, or take note of traced ones
                if num_data is None:
                    jax.eval_shape(partial(shape_of, None), number)
                    return False
                try:
                    jax.eval_shape(shape_of, number, number)
                    return False
                except Exception:  # Python may use values of the data alone
                    shapes = [jax.eval_shape(partial(shape_of, datum), number) for datum in range(num_data)]
                return len({(jax.tree.structure(s), str(jax.tree.leaves(s))) for s in shapes}) > 1
        except Exception:  # whatever Python did with a value that is not known
            return True
