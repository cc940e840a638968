"""Which value Python has to know, where programs cannot be compiled: of an argument, or of a latent site.

Found by tracing again with some of them known: programs that need no other value are then traced.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax

from rws_jax.checks.control_flow import fail_static, fail_traced_argument
from rws_jax.checks.static import argument_name
from rws_jax.core.errors import CONCRETIZATION_ERRORS, is_own
from rws_jax.core.layers import ProgramFn
from rws_jax.execution.branching.errors import check_outside_of_plates, fail_traced, fail_unannotated
from rws_jax.execution.branching.handler import KnownValues, Latents, no_branching
from rws_jax.execution.branching.trace import BranchingValue
from rws_jax.programs.program import Arguments

_MANY = 30  # leaves of the arguments, each of which would be traced by itself


def check_compiles(run: Callable[[Any, Arguments], Any], rest: Any, arguments: Arguments, model: ProgramFn) -> None:
    """Programs that need concrete values, and have run with them, would fail in the compiled step only.

    Args:
      run: runs the programs; it is called with `rest` and `arguments`, some or all of them traced.
      rest: what is traced in any case, the random key say.
      arguments: those of the programs.
      model: names the arguments.
    """
    error = _error_of(run, rest, arguments)
    if error is not None:
        explain(error, run, rest, arguments, model)


def explain(
    error: Exception, run: Callable[[Any, Arguments], Any], rest: Any, arguments: Arguments, model: ProgramFn
) -> NoReturn:
    """Raise an error that names the values which Python has to know."""
    if is_own(error):
        raise error
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tuple(arguments))]
    of_leaf = [_Argument(argument_name(path if len(paths) <= _MANY else path[:2], model)) for path in paths]
    latents = Latents()
    try:
        with no_branching(), latents:
            run(rest, arguments)
    except Exception:  # with all values known they do not run either
        if isinstance(error, CONCRETIZATION_ERRORS):
            fail_static(error)
        raise error from None

    if latents.branching:
        fail_traced("traced values")

    def compiles(known: Iterable[_Argument | str]) -> bool:
        values = [BranchingValue.of(name, site["value"]) for name, site in latents.sites.items() if name in known]
        return _error_of(run, rest, arguments, [name in known for name in of_leaf], values) is None

    of_arguments, of_sites = list(dict.fromkeys(of_leaf)), list(latents.sites)
    candidates = of_arguments, of_sites, of_arguments + of_sites
    needed = next((_needed(some, compiles) for some in candidates if compiles(some)), None)
    if not needed and isinstance(error, TypeError | IndexError):  # of these kinds are JAX's errors on traced values
        fail_static(error)
    if not needed:
        raise error
    names = [value.name for value in needed if isinstance(value, _Argument)]
    sites = [value for value in needed if isinstance(value, str)]
    if names:
        fail_traced_argument(error, names, sites)
    for name in sites:
        check_outside_of_plates(latents.sites[name], error)
    fail_unannotated(error, sites)


class _Argument(NamedTuple):
    """An argument, or a leaf of it, by what messages call it; a latent site is a string."""

    name: str


def _error_of(
    run: Callable[[Any, Arguments], Any],
    rest: Any,
    arguments: Arguments,
    is_known: Sequence[bool] = (),
    latents: Sequence[BranchingValue] = (),
) -> Exception | None:
    """The error of a run in which all else is traced."""
    leaves, structure = jax.tree.flatten(arguments)
    known = {number for number, is_one in enumerate(is_known) if is_one}

    def traced(rest: Any, unknown: dict[int, Any]) -> None:
        whole = [unknown.get(number, leaf) for number, leaf in enumerate(leaves)]
        if not (known or latents):
            run(rest, jax.tree.unflatten(structure, whole))
            return
        with jax.ensure_compile_time_eval(), KnownValues(latents):  # Python may compute with what is known
            run(rest, jax.tree.unflatten(structure, whole))

    try:
        with warnings.catch_warnings():  # which the run with all values has given
            warnings.simplefilter("ignore")
            jax.eval_shape(traced, rest, {number: leaf for number, leaf in enumerate(leaves) if number not in known})
    except Exception as error:  # of JAX, or of whatever was given a traced value
        return error
    return None


def _needed(candidates: list, compiles: Callable[[list], bool]) -> list:
    """As few of the candidates as will do."""
    needed = candidates
    for one in candidates:
        others = [other for other in needed if other != one]
        if compiles(others):
            needed = others
    return needed
