"""Messages for programs that cannot be compiled, or were to run un-jitted and are traced all the same."""

from typing import NoReturn

from rws_jax.core.errors import fail, first_line


def fail_jitted(error: Exception) -> NoReturn:
    """Programs that are to branch in Python were traced all the same."""
    fail(
        TypeError,
        "option 'vectorize_particles' is False, but the call is traced by jit, scan or vmap",
        expected="a call outside of JAX transformations other than grad: programs branch in Python on sampled values",
        found=first_line(error),
        hint="call it un-jitted; to compile, branch by numpyro.contrib.control_flow.cond or handlers.mask instead",
    )


def fail_static(error: Exception) -> NoReturn:
    """A program runs with concrete arguments, but not with traced ones."""
    fail(
        TypeError,
        "model or guide cannot be compiled: they use a value that is known at run time only",
        expected="Python control flow and shapes that depend on static values only",
        found=first_line(error),
        hint="bind flags and sizes by functools.partial(model, ...); branch on sites with infer={'branching': True}, by"
        " numpyro.contrib.control_flow.cond or handlers.mask, or in Python with vectorize_particles=False",
    )
