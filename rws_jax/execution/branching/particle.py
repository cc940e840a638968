"""One particle along a branching trace: what programs compute there, and how their errors are reported."""

from typing import Any

from rws_jax.core.errors import CONCRETIZATION_ERRORS
from rws_jax.execution.branching.errors import fail_located, fail_unannotated
from rws_jax.execution.branching.handler import BranchHandler
from rws_jax.execution.data_axes import Data
from rws_jax.execution.executor import ParticleFn
from rws_jax.programs.program import Index, Programs


def run_along(
    handler: BranchHandler, particle: ParticleFn, programs: Programs, data: Data, datum: Any, number: Any
) -> Any:
    """Run one particle of one datum within a handler; where programs branch, all of a datum is one unit."""
    datum = None if data.axes is None else datum
    programs = data.take(programs, datum)
    try:
        with handler:
            result = particle(programs, Index(number, datum, alone=True))
        handler.check_ended()
    except CONCRETIZATION_ERRORS as error:
        fail_unannotated(error, list(dict.fromkeys(handler.unknown)), tuple(handler.taken))
    except Exception as error:
        fail_located(error, tuple(handler.taken))
    return result.joint()
