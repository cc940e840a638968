"""Checks of what is passed to the package: keys, programs, parameters, states and plain options."""

import inspect
import numbers
import re
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.handlers import seed

from rws_jax.core.errors import describe, fail
from rws_jax.core.layers import layers, unwrapped
from rws_jax.core.unconstrained import Unconstrained, fail_unconstrained


def check_flag(value: Any, option: str) -> None:
    """Check that an option is True or False."""
    if not isinstance(value, bool | np.bool_):
        fail(
            TypeError,
            f"option {option!r} has the wrong type",
            expected="True or False",
            found=describe(value),
            hint=f"pass {option}=True or {option}=False; it is fixed when the step is compiled",
        )


def check_int(value: Any, option: str, minimum: int, *, expected: str, hint: str) -> None:
    """Check that an option is an int of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        fail(
            TypeError,
            f"option {option!r} has the wrong type",
            expected=expected,
            found=describe(value),
            hint=f"{option} must be a Python int, and not an array or a float",
        )
    if value < minimum:
        fail(ValueError, f"option {option!r} is too small", expected=expected, found=f"{value}", hint=hint)


def check_rng_key(value: Any, what: str, hint: str) -> None:
    """Check that a value is one JAX key, typed or legacy."""
    dtype = getattr(value, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and jnp.shape(value) == ()
    legacy = dtype == jnp.uint32 and jnp.shape(value) in ((2,), (4,))
    if not (typed or legacy):
        fail(
            TypeError,
            f"{what} is not a random key",
            expected="a JAX random key",
            found=describe(value),
            hint=hint,
        )


def warn_of_rbg(rng_keys: Iterable[Any], option: str) -> None:
    """Mapped over, such keys all draw from the first one: valid draws, but others for each size of a group."""
    if any(map(is_rbg, rng_keys)):
        warnings.warn(
            f"option {option!r} changes the draws of keys of the kind 'rbg', which JAX does not draw one by one:"
            " results depend on it. With keys of the kind 'threefry2x32', JAX's default, they do not.",
            stacklevel=2,
        )


def is_rbg(rng_key: Any) -> bool:
    """Whether what a key draws depends on the keys that are mapped over with it."""
    typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    return "rbg" in str(jax.random.key_impl(rng_key)) if typed else jnp.shape(rng_key) == (4,)


def check_program(value: Any, role: str) -> None:
    """Check that a program is callable, and not seeded yet."""
    if not callable(value):
        fail(
            TypeError,
            f"the {role} is not callable",
            expected="a function with NumPyro's sample, param and plate statements",
            found=describe(value),
            hint=f"pass the {role} function itself, not what it returns",
        )
    for layer in layers(value):
        if isinstance(layer, seed):
            fail(
                ValueError,
                f"the {role} is seeded already, and would draw the same noise at every step",
                expected="the program without numpyro.handlers.seed",
                found=f"seed({getattr(layer.fn, '__name__', layer.fn)})",
                hint=f"pass the bare {role}; each call seeds it anew, from the key in the state or from rng_key",
            )


def check_state(value: Any, kind: type, what: str = "the first argument of step") -> None:
    """Check that an argument, the first one of a step as a rule, is a state."""
    if not isinstance(value, kind):
        fail(
            TypeError,
            f"{what} is not a state",
            expected=f"the {kind.__name__} that init or the last step returned, then the arguments of model and guide",
            found=describe(value),
            hint=f"rws.step(state, *args); a restored checkpoint has to be made a {kind.__name__} again",
        )


def check_takes(program: Any, role: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Check that `get_params` is called with arguments that a program takes."""
    signature, why = _refused(program, args, kwargs)
    if why:
        fail(
            TypeError,
            f"get_params runs both programs, and its arguments are not those of the {role}: {why}",
            expected=f"rws.get_params(state, *args, **kwargs), with the arguments of step: {signature}",
            found=f"{len(args)} positional arguments after the state, and by keyword {sorted(kwargs)}",
            hint="the state holds unconstrained values, and their constraints are known where programs run",
        )


def explain_call(error: TypeError, roles: Mapping[str, Any], args: tuple, kwargs: dict[str, Any]) -> None:
    """Where Python says that a function was called with arguments that it does not take, say which program that is."""
    called = re.match(r"(.+?)\(\) (got|missing|takes) ", str(error))
    for role, program in roles.items():
        signature, why = _refused(program, args, kwargs)
        if why and called and called[1] == _name_in_errors(program):
            hint = "model and guide are called with the same arguments; one may ignore what the other needs"
            if role == "model" and "observations" in kwargs:
                hint = (
                    "condition a model that runs without data, as in"
                    " lambda observations: numpyro.handlers.condition(model, data=observations)(),"
                    " or let it take observations and pass them to obs="
                )
            fail(
                TypeError,
                f"the {role} does not take the arguments of the call: {why}",
                expected=f"arguments of both programs; the {role}'s are {signature}",
                found=f"{len(args)} of them by position, and by keyword {sorted(kwargs)}",
                hint=hint,
                cause=error,
            )


def _name_in_errors(program: Any) -> str:
    """What Python calls a program in an error of its call."""
    function = unwrapped(program)
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__qualname__", f"{type(function).__qualname__}.__call__")


def _refused(program: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[inspect.Signature | None, str]:
    """A program's signature, and why it does not take these arguments; nothing if it does, or has no signature."""
    try:
        signature = inspect.signature(unwrapped(program))
    except (TypeError, ValueError):  # not every callable has one
        return None, ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return signature, str(error)
    return signature, ""


def check_params(value: Any, symbol: str) -> None:
    """Check that parameters, which losses take first, are dicts."""
    if not isinstance(value, Mapping):
        fail(
            TypeError,
            f"{symbol} is not a dict",
            expected=f"{symbol} as a dict keyed by numpyro.param site",
            found=describe(value),
            hint="params are what rws.get_params(state, *args) gives"
            if symbol == "params"
            else "losses take (theta, phi, seeded_model, seeded_guide, *args)",
        )
    if isinstance(value, Unconstrained):
        fail_unconstrained(f"the values of {symbol}")
