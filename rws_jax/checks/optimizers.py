"""Messages for optimizers that need what a training step does not have."""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NoReturn

import optax

from rws_jax.core.errors import describe, fail, first_line


def check_optimizer(value: Any, option: str) -> None:
    """Check that an option is one of optax's optimizers."""
    if not isinstance(value, optax.GradientTransformation | optax.MultiSteps):
        fail(
            TypeError,
            f"option {option!r} is not an optax optimizer",
            expected="an optax.GradientTransformation, or optax.MultiSteps",
            found=describe(value),
            hint="pass optax.adam(1e-3), say; NumPyro's optimizers have optax counterparts of the same names",
        )


def check_asks_for_nothing(option: str, error: Exception) -> None:
    """What an update has raised must not ask for arguments that a step does not have, whatever the parameters."""
    names = _asked_for(error)
    if names:
        fail(
            partial(_caused_by, error),
            f"option {option!r} is an optimizer that asks for {names}, which a step does not have",
            expected=_NEEDS,
            found=first_line(error),
            hint="line searches and estimates of second derivatives evaluate the loss anew, which is made of random"
            " draws: pass optax.adam(1e-3), say, or optax.lbfgs(1e-3, linesearch=None)",
        )
    if isinstance(error, AttributeError) and isinstance(error.obj, Mapping):
        fail(
            partial(_caused_by, error),
            f"option {option!r} is an optimizer of parameters of a kind of its own",
            expected=_NEEDS,
            found=first_line(error),
            hint="parameters are dicts keyed by numpyro.param site; in place of optax.lookahead(optimizer, ...) pass"
            " the optimizer by itself",
        )


def fail_update(option: str, error: Exception, names: Iterable[str]) -> NoReturn:
    """An update of the real parameters has raised some other error."""
    fail(
        partial(_caused_by, error),
        f"option {option!r} cannot update the parameters",
        expected=f"{_NEEDS}; these are of the param sites {sorted(names)}",
        found=f"{type(error).__name__}: {first_line(error)}",
        hint="labels and masks have to be those of these sites: make them by a function of the parameters",
    )


_NEEDS = "an optimizer of gradients and parameters, which may also take the loss as value=..."


def _asked_for(error: Exception) -> str:
    """The arguments that an update lacks: required ones, or functions of the loss that optax asks for by name."""
    text = first_line(error)
    missing = re.search(r"missing \d+ required keyword-only arguments?: (.*)$", text)
    if isinstance(error, TypeError) and missing:
        return missing[1]
    return " or ".join(repr(name) for name in ("value_fn", "grad_fn", "obj_fn") if name in text)


def _caused_by(error: Exception, message: str) -> TypeError:
    failure = TypeError(message)
    failure.__cause__ = error
    return failure
