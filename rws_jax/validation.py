"""Checks of options, and the one shape that every message of the package has.

What is wrong and where, what was expected, what was found, and a remedy. All are raised before anything is trained:
by `make_step`, by `init`, by the pure losses and while `step` is traced; never at run time.
"""

import numbers
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from numpyro.handlers import seed
from numpyro.primitives import Messenger


def fail(kind: type[Exception], problem: str, *, expected: str, found: str, hint: str) -> NoReturn:
    """Raise `kind` with the message shape that every error of the package has."""
    raise kind(f"{problem}\n  expected: {expected}\n  found:    {found}\n  hint:     {hint}")


def describe(value: Any) -> str:
    """A value in one short line."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {value.dtype}{list(value.shape)}"
    return f"{value!r} of type {type(value).__name__}"


def check_num_particles(value: Any, option: str, *, minimum: int) -> None:
    """An int of at least `minimum`."""
    why = " (with one particle every weight is 1, and wake-phi learns nothing)" if minimum > 1 else ""
    expected = f"an int >= {minimum}{why}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        fail(
            TypeError,
            f"option {option!r} has the wrong type",
            expected=expected,
            found=describe(value),
            hint=f"{option} sets array shapes, so it must be a Python int known when the step is compiled",
        )
    if value < minimum:
        fail(
            ValueError,
            f"option {option!r} is too small",
            expected=expected,
            found=f"{value}",
            hint=f"pass {option}=10, say; effective sample sizes in the info tell whether more are needed",
        )


def check_insomnia(value: Any) -> None:
    """A number in [0, 1], or a schedule."""
    if callable(value):
        return
    scalar = isinstance(value, jax.Array) and value.ndim == 0 and not isinstance(value, Tracer)
    if isinstance(value, bool) or not (scalar or isinstance(value, numbers.Real)):
        fail(
            TypeError,
            "option 'insomnia' has the wrong type",
            expected="a number in [0, 1], or a function of the step count as optax's schedules are",
            found=describe(value),
            hint="1.0 trains the guide on wake-phi alone, 0.0 on sleep-phi alone, 0.5 on both",
        )
    if not 0.0 <= float(value) <= 1.0:  # NaN is not either
        fail(
            ValueError,
            "option 'insomnia' is out of range",
            expected="a number in [0, 1]",
            found=f"{value}",
            hint="1.0 trains the guide on wake-phi alone, 0.0 on sleep-phi alone, 0.5 on both",
        )


def check_scheduled_insomnia(value: Any) -> None:
    """What an insomnia schedule returned must be one number, and in [0, 1] where it can be seen."""
    if jnp.shape(value) != ():
        fail(
            TypeError,
            "the schedule given as option 'insomnia' does not return a number",
            expected="a scalar for each step count",
            found=f"shape {jnp.shape(value)}",
            hint="optax.linear_schedule(1.0, 0.5, 1000) is such a schedule",
        )
    if not isinstance(value, Tracer):
        check_insomnia(float(value))


def check_optimizer(value: Any, option: str) -> None:
    """An optax gradient transformation."""
    if not isinstance(value, optax.GradientTransformation):
        fail(
            TypeError,
            f"option {option!r} is not an optax optimizer",
            expected="an optax.GradientTransformation",
            found=describe(value),
            hint="pass optax.adam(1e-3), say; NumPyro's optimizers have optax counterparts of the same names",
        )


def check_rng_key(value: Any) -> None:
    """One JAX key, typed or legacy."""
    dtype = getattr(value, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and jnp.shape(value) == ()
    legacy = dtype == jnp.uint32 and jnp.ndim(value) == 1
    if not (typed or legacy):
        fail(
            TypeError,
            "the first argument of init is not a random key",
            expected="a JAX random key",
            found=describe(value),
            hint="call rws.init(jax.random.key(0), *args)",
        )


def check_program(value: Any, role: str) -> None:
    """A bare NumPyro program: callable, and not seeded yet."""
    if not callable(value):
        fail(
            TypeError,
            f"the {role} is not callable",
            expected="a function with NumPyro's sample, param and plate statements",
            found=describe(value),
            hint=f"pass the {role} function itself, not what it returns",
        )
    inner = value
    while isinstance(inner, Messenger):
        if isinstance(inner, seed):
            fail(
                ValueError,
                f"the {role} given to make_step is seeded already, and would draw the same noise at every step",
                expected="the program without numpyro.handlers.seed",
                found=f"seed({getattr(inner.fn, '__name__', inner.fn)})",
                hint=f"pass the bare {role}; each step seeds it anew from the key in the state",
            )
        inner = inner.fn


def check_sleep_options(simulated_data_to_args: Any, observed_sites: Any) -> None:
    """A function or None, and a tuple of names."""
    if simulated_data_to_args is not None and not callable(simulated_data_to_args):
        fail(
            TypeError,
            "option 'simulated_data_to_args' is not callable",
            expected="a function (sim_data, *args, **kwargs) -> (args, kwargs), or None",
            found=describe(simulated_data_to_args),
            hint="simulated_data_to_args=lambda sim, *args, **kwargs: ((sim['x'],), {})",
        )
    listed = isinstance(observed_sites, tuple | list)
    if not listed or not all(isinstance(name, str) for name in observed_sites):
        fail(
            TypeError,
            "option 'observed_sites' has the wrong type",
            expected="a tuple of site names",
            found=describe(observed_sites),
            hint="observed_sites=('x',), with the comma",
        )


def check_state(value: Any, kind: type) -> None:
    """A step takes the state first."""
    if not isinstance(value, kind):
        fail(
            TypeError,
            "the first argument of step is not a state",
            expected=f"the {kind.__name__} that init or the last step returned, then the arguments of model and guide",
            found=describe(value),
            hint=f"rws.step(state, *args); a restored checkpoint has to be made a {kind.__name__} again",
        )


def check_params(value: Any, symbol: str) -> None:
    """Losses take parameters first, as dicts."""
    if not isinstance(value, Mapping):
        fail(
            TypeError,
            f"{symbol} is not a dict",
            expected=f"{symbol} as a dict keyed by numpyro.param site",
            found=describe(value),
            hint="losses take (theta, phi, seeded_model, seeded_guide, *args)",
        )


def fail_static(error: Exception) -> NoReturn:
    """A program runs with concrete arguments, but not with traced ones."""
    fail(
        TypeError,
        "model or guide cannot be compiled: they use a value that is known at run time only",
        expected="Python control flow and shapes that depend on static values only",
        found=str(error).split("\n")[0][:200],
        hint="bind flags and sizes by functools.partial(model, ...); branch on sampled values by"
        " numpyro.contrib.control_flow.cond or by handlers.mask",
    )
