"""Messages for programs that branch in Python."""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from rws_jax.core.errors import fail, is_own, where_from
from rws_jax.core.sites import Site
from rws_jax.execution.branching.trace import BranchingTrace, BranchingValue, describe_trace


class BranchingSiteError(TypeError):
    """A branching site was met where all is compiled at once, and its value is not known."""


class UnannotatedError(TypeError):
    """Python branches on sites that the program which draws them does not annotate, but another one may.

    Attributes:
      names: those that it may be.
    """

    def __init__(self, message: str, names: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


def check_outside_of_plates(site: Site, cause: Exception | None = None) -> None:
    """Python can branch for one datum at a time."""
    wide = [frame for frame in site["cond_indep_stack"] if frame.size > 1]
    if wide:
        fail(
            ValueError,
            f"branching site {site['name']!r} of the {site['role']} is in plate {wide[0].name!r}, and Python takes one"
            " branch",
            expected="branching sites outside of plates",
            found=f"plate {wide[0].name!r} of size {wide[0].size}",
            hint="write the programs for a single datum, without the plate, and pass data_axes=0",
            cause=cause,
        )


def fail_located(error: Exception, trace: BranchingTrace) -> NoReturn:
    """Raise an error of the package again, with the branching trace that it is of."""
    if is_own(error) and " path" not in str(error):
        problem, rest = str(error).split("\n", 1)
        raise type(error)(f"{problem}, on {describe_trace(trace)}\n{rest}") from error
    error.add_note(f"on {describe_trace(trace)}")
    raise error


def note_one_datum(error: Exception, arguments: Any) -> None:
    """Where Python takes an array for a single number, say how programs of a single datum are run on many."""
    is_wide = any(jnp.ndim(leaf) for leaf in jax.tree.leaves(arguments))
    if is_wide and _TAKEN_FOR_A_NUMBER.search(str(error)) and _ONE_DATUM not in getattr(error, "__notes__", ()):
        error.add_note(_ONE_DATUM)


_TAKEN_FOR_A_NUMBER = re.compile(r"truth value of an array|(?i:only) .*arrays can be converted")
_ONE_DATUM = (
    "Are the programs written for one datum? Then pass data_axes=0, which runs them on each row of the arguments."
)


def fail_supports(
    role: str, name: str, kinds: tuple[str, str], traces: tuple[BranchingTrace, BranchingTrace]
) -> NoReturn:
    """One name is used for different things."""
    fail(
        ValueError,
        f"latent site {name!r} of the {role} has different supports on different paths",
        expected=f"{kinds[0]}, as on {describe_trace(traces[0])}",
        found=f"{kinds[1]} on {describe_trace(traces[1])}",
        hint="give sites of different kinds different names",
    )


def fail_unannotated(
    error: Exception,
    names: list[str],
    trace: BranchingTrace | None = None,
    kind: Callable[[str], Exception] = TypeError,
) -> NoReturn:
    """Python branches on what it does not know."""
    which = f"the value of site {' or '.join(map(repr, names))}" if names else "a value that is known at run time only"
    fail(
        kind,
        f"model or guide cannot be compiled: Python branches on {which}",
        expected="Python to branch on sites with infer={'branching': True} and on static values alone",
        found=where_from(error) + ("" if trace is None else f", on {describe_trace(trace)}"),
        hint="annotate the site so in model and guide, or branch by numpyro.contrib.control_flow.cond or handlers.mask,"
        " or pass vectorize_particles=False; bind flags and sizes by functools.partial(model, ...)",
        cause=error,
    )


def fail_traced(found: str) -> NoReturn:
    """Programs are checked as Python runs them, by a caller who knows the values."""
    fail(
        BranchingSiteError,
        "programs have branching sites, but the call is traced by jit, scan or vmap",
        expected="a call outside of JAX transformations other than grad, once before: Python has to run the programs",
        found=found,
        hint="call rws.init (for one seed after the other), svi.evaluate or the function itself un-jitted first; or"
        " branch by numpyro.contrib.control_flow.cond or handlers.mask instead",
    )


def fail_not_unrolled(error: Exception) -> NoReturn:
    """The call is traced, and programs cannot be compiled as a whole; a mistake on one of the paths is the user's."""
    mistake = error.__cause__
    if mistake is not None and is_own(mistake):
        raise BranchingSiteError(str(mistake)) from error
    fail(
        BranchingSiteError,
        "programs have branching sites, but the call is traced by jit, scan or vmap, and they cannot be compiled as a"
        " whole",
        expected="sites of few values, as Bernoulli and Categorical are, with few paths in all that can each be run",
        found=str(error),
        hint="call it in a Python loop, or by rws_jax.fit, one loss at a time: then each path is compiled by itself; or"
        " branch by numpyro.contrib.control_flow.cond or handlers.mask instead",
        cause=error,
    )


def warn_of_path(error: BranchingSiteError) -> None:
    """Programs go by paths since one of these fails, which may be a mistake that would show late."""
    reason = error.__cause__
    mistake = None if reason is None else reason.__cause__
    if mistake is not None and not isinstance(mistake, UnannotatedError):
        warnings.warn(
            f"programs are not compiled as a whole, but run by paths, as one of these fails: {reason}. If no particle"
            " can take it, nothing is lost but time.",
            stacklevel=3,
        )


def fail_endless(name: str, taken: Sequence[BranchingValue]) -> NoReturn:
    """A loop in Python goes on and on, as one that ends when a value is drawn which has no probability."""
    fail(
        ValueError,
        f"no end of a loop at branching site {name!r}, on {describe_trace(taken)}",
        expected=f"at most {len(taken):,} branching sites on a path",
        found="more",
        hint="where data or parameters are NaN, so is a probability, and the value that ends the loop is never drawn;"
        " otherwise let the loop end after some rounds",
    )


def fail_not_deterministic(trace: BranchingTrace, expected: str, found: str) -> NoReturn:
    """A program that draws the same values takes another way."""
    fail(
        ValueError,
        f"a program is not deterministic given its sites: it took another way on {describe_trace(trace)}",
        expected=f"{expected} next, as in the run before",
        found=found,
        hint="Python may branch on sites with infer={'branching': True} and on constants, not on other randomness, nor"
        " on what other runs leave behind",
    )
