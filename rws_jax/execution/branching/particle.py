"""One particle along a branching trace: what programs compute there, and how their errors are reported."""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from rws_jax.core.errors import CONCRETIZATION_ERRORS, fail
from rws_jax.execution.branching.errors import UnannotatedError, fail_located, fail_unannotated
from rws_jax.execution.branching.handler import BranchHandler
from rws_jax.execution.data import Data
from rws_jax.execution.executor import ParticleFn, as_one_unit
from rws_jax.execution.ragged import split
from rws_jax.programs.program import Index, Programs

T = TypeVar("T")


def run_along(
    handler: BranchHandler,
    particle: ParticleFn[T],
    programs: Programs,
    data: Data,
    datum: jax.Array | int,
    number: jax.Array | int,
) -> T:
    """Run one particle of one datum among all data within a handler."""
    index = Index(number, None if data.axes is None else datum)
    return run_one(handler, particle, data.take(programs, index.datum), index)


def run_one(handler: BranchHandler, particle: ParticleFn[T], programs: Programs, index: Index) -> T:
    """Run one particle of the programs of its datum within a handler; all of a datum is one unit."""
    index = index._replace(alone=True)
    try:
        with handler:
            result = particle(programs, index)
        handler.check_ended()
    except CONCRETIZATION_ERRORS as error:
        names = list(dict.fromkeys(handler.unknown))
        fail_unannotated(error, names, tuple(handler.taken), partial(UnannotatedError, names=names))
    except Exception as error:
        fail_located(error, tuple(handler.taken))
    result = as_one_unit(result)
    numbers, *_ = split(result)
    if any(jnp.shape(leaf) != () for leaf in numbers):
        fail(
            ValueError,
            "programs have branching sites, and what is computed of each particle is no scalar",
            expected="a number for each particle, as its log densities are",
            found=f"shapes {[jnp.shape(leaf) for leaf in numbers]}",
            hint="pass vectorize_particles=False, where particles run one by one",
        )
    return result
