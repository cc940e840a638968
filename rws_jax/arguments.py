"""What is called with programs: parameters, programs and their arguments, none of them mistaken for an option."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax

from rws_jax import options as declared
from rws_jax.checks.arguments import check_params, check_program, check_rng_key
from rws_jax.core.errors import fail
from rws_jax.core.layers import Params, ProgramFn, hashable, unwrapped
from rws_jax.options import RunOptions
from rws_jax.programs.program import Arguments, Program, Programs


def programs_of(
    loss: Callable[..., jax.Array],
    theta: Params,
    phi: Params,
    model: ProgramFn,
    guide: ProgramFn,
    args: tuple,
    kwargs: dict[str, Any],
    u: ProgramFn | None = None,
) -> Programs:
    """Take the programs that a loss is given apart, once it is clear that no option is taken for an argument of theirs.

    Args:
      loss: which loss is called.
      theta: parameters of the model.
      phi: parameters of the guide.
      model: seeded.
      guide: seeded.
      args: positional arguments of the programs.
      kwargs: keyword arguments of the programs.
      u: a defensive guide, seeded.
    """
    check_params(theta, "theta")
    check_params(phi, "phi")
    for program, role in ((model, "model"), (guide, "guide")):
        check_no_collision(loss, program, role, len(args))
    check_passed_on(loss, (model, guide), kwargs)
    return Programs(
        Program.of_seeded(model, "model", theta),
        Program.of_seeded(guide, "guide", phi),
        None if u is None else Program.of_seeded(u, "defensive guide", None),
        Arguments.of(args, kwargs, model),
    )


def trained_programs_of(
    function: Callable,
    options: RunOptions,
    rng_key: jax.Array,
    params: Params,
    model: ProgramFn,
    guide: ProgramFn,
    args: tuple,
    kwargs: dict[str, Any],
) -> Programs:
    """Take what a function of trained programs is given apart: these are not seeded, and share a dict of parameters.

    Args:
      function: which function is called.
      options: those it is called with.
      rng_key: JAX random key.
      params: constrained values of both programs, as `get_params` gives them.
      model: not seeded.
      guide: not seeded.
      args: positional arguments of the programs.
      kwargs: keyword arguments of the programs.
    """
    u = options.u
    check_rng_key(rng_key, f"the first argument of {function.__name__}", "pass jax.random.key(0), say")
    check_params(params, "params")
    roles: dict[str, ProgramFn] = {"model": model, "guide": guide} | ({} if u is None else {"defensive guide": u})
    for role, program in roles.items():
        check_program(program, role)
        check_no_collision(function, program, role, len(args))
    check_passed_on(function, (model, guide), kwargs)
    own = [
        Program(hashable(program), role, key, dict(params), mutable_state=options.mutable_state or {})
        for (role, program), key in zip(roles.items(), jax.random.split(rng_key, 3), strict=False)
    ]
    proposal = None if u is None else replace(own[2], params=None)
    return Programs(own[0], own[1], proposal, Arguments.of(args, kwargs, model))


def check_passed_on(loss: Callable, programs: Iterable[ProgramFn], kwargs: dict[str, Any]) -> None:
    """An option of another loss would go to the programs, which may take any argument in silence."""
    for name in sorted(declared.NAMES & kwargs.keys()):
        if not any(name in _parameters_of(program) for program in programs):
            fail(
                TypeError,
                f"{loss.__name__} has no option {name!r}",
                expected=f"its options {sorted(_options_of(loss))}, or arguments of the programs",
                found=f"{name}=..., an option of others",
                hint=f"see help(rws_jax.{loss.__name__}); options of training are in help(rws_jax.make_step)",
            )


def check_no_collision(loss: Callable, program: ProgramFn, role: str, num_args: int) -> None:
    """A program's argument named as an option of the loss would not be passed on, in silence."""
    own, program = _options_of(loss), unwrapped(program)
    by_keyword = list(_parameters_of(program))[num_args:]
    bound = getattr(program, "keywords", {})  # by functools.partial
    taken = [name for name in by_keyword if name in own and name not in bound]
    if taken:
        fail(
            ValueError,
            f"argument {taken[0]!r} of the {role} has the name of an option of {loss.__name__}",
            expected=f"arguments of the {role} named otherwise than the options {sorted(own)}",
            found=f"{taken} among the arguments of the {role}",
            hint=f"rename it, pass it by position, or bind it by functools.partial({role}, {taken[0]}=...)",
        )


def _options_of(loss: Callable) -> set[str]:
    return {p.name for p in inspect.signature(loss).parameters.values() if p.kind == p.KEYWORD_ONLY}


def _parameters_of(program: ProgramFn) -> dict[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(unwrapped(program)).parameters.values()
    except (TypeError, ValueError):  # not every callable has a signature
        return {}
    return {p.name: p for p in parameters if p.kind != p.VAR_KEYWORD}
