"""Messages for programs that cannot be compiled, or were to run un-jitted and are traced all the same."""

from collections.abc import Sequence
from typing import NoReturn

from rws_jax.core.errors import fail, where_from


def fail_jitted(error: Exception) -> NoReturn:
    """Programs that are to branch in Python were traced all the same."""
    fail(
        TypeError,
        "option 'vectorize_particles' is False, but the call is traced by jit, scan or vmap",
        expected="a call outside of JAX transformations other than grad: programs branch in Python on sampled values",
        found=where_from(error),
        hint="call it un-jitted; to compile, branch by numpyro.contrib.control_flow.cond or handlers.mask instead",
        cause=error,
    )


def fail_static(error: Exception) -> NoReturn:
    """A program runs with concrete arguments, but not with traced ones."""
    fail(
        TypeError,
        "model or guide cannot be compiled: they use a value that is known at run time only",
        expected="Python control flow and shapes that depend on static values only",
        found=where_from(error, names_arguments=True),
        hint="bind flags and sizes by functools.partial(model, ...); branch on sites with infer={'branching': True}, by"
        " numpyro.contrib.control_flow.cond or handlers.mask, or in Python with vectorize_particles=False",
        cause=error,
    )


def fail_traced_argument(error: Exception, arguments: Sequence[str], sites: Sequence[str]) -> NoReturn:
    """A program needs to know the value of an argument, which is no latent that Python might branch on."""
    also = f", and of site {' and '.join(map(repr, sites))}" if sites else ""
    fail(
        TypeError,
        f"model or guide cannot be compiled: Python has to know the value of {' and '.join(arguments)}{also}",
        expected="Python control flow and shapes that depend on static values only: arrays and numbers among the"
        " arguments are traced",
        found=where_from(error),
        hint="bind what Python has to know by functools.partial(model, ...), the guide likewise; True, False and text"
        " are static as arguments too; use numpyro.handlers.mask for what differs between data",
        cause=error,
    )
