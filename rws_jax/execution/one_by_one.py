"""Particles that run one by one and un-jitted: Python may branch on what they draw, and look at what they compute."""

from dataclasses import dataclass
from typing import TypeVar

from rws_jax.checks.control_flow import fail_jitted
from rws_jax.core.errors import CONCRETIZATION_ERRORS
from rws_jax.execution.branching.handler import no_branching
from rws_jax.execution.data import ALL_DATA, Data
from rws_jax.execution.executor import Executor, ParticleFn, side_by_side
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

    def __call__(self, particle: ParticleFn[T], programs: Programs, num: int) -> T:
        """Loop over data and particles in Python."""

        def of_datum(datum: int | None) -> T:
            of_one = self.data.take(programs, datum)
            return side_by_side([particle(of_one, Index(number, datum, alone=True)) for number in range(num)])

        try:
            with no_branching():
                num_data = self.data.count(programs)
                if num_data is None:
                    return of_datum(None)
                return side_by_side([of_datum(datum) for datum in range(num_data)], axis=1)
        except CONCRETIZATION_ERRORS as error:
            fail_jitted(error)
