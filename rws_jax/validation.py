"""Checks of what is passed to the package, and the one shape that all of its messages have.

What is wrong and where, what was expected, what was found, and a remedy. All are raised before anything is trained:
by `make_step`, by `init`, by the pure losses and while `step` is traced; never at run time.
"""

import inspect
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.handlers import seed
from numpyro.primitives import Messenger

# What JAX raises if Python has to know a traced value.
BRANCHES = jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError


def fail(kind: Callable[[str], Exception], problem: str, *, expected: str, found: str, hint: str) -> NoReturn:
    """Raise `kind` with the message shape that every error of the package has."""
    raise kind(f"{problem}\n  expected: {expected}\n  found:    {found}\n  hint:     {hint}")


def describe(value: Any) -> str:
    """A value in one short line."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {value.dtype}{list(value.shape)}"
    return f"{value!r} of type {type(value).__name__}"


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


def check_flag(value: Any, option: str) -> None:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        fail(
            TypeError,
            f"option {option!r} has the wrong type",
            expected="True or False",
            found=describe(value),
            hint=f"pass {option}=True or {option}=False; it is fixed when the step is compiled",
        )


def check_int(value: Any, option: str, minimum: int, *, expected: str, hint: str) -> None:
    """An int of at least `minimum`."""
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
    """One JAX key, typed or legacy."""
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
    for layer in layers(value):
        if isinstance(layer, seed):
            fail(
                ValueError,
                f"the {role} is seeded already, and would draw the same noise at every step",
                expected="the program without numpyro.handlers.seed",
                found=f"seed({getattr(layer.fn, '__name__', layer.fn)})",
                hint=f"pass the bare {role}; each step seeds it anew from the key in the state",
            )


def check_passed_on(loss: Callable, programs: Iterable[Any], kwargs: dict[str, Any]) -> None:
    """An option of another loss would go to the programs, which may take any argument in silence."""
    for name in sorted(_OPTIONS & kwargs.keys()):
        if not any(name in _parameters_of(program) for program in programs):
            fail(
                TypeError,
                f"{loss.__name__} has no option {name!r}",
                expected=f"its options {sorted(_options_of(loss))}, or arguments of the programs",
                found=f"{name}=..., an option of others",
                hint="see help(rws_jax.make_step), which has all of them",
            )


def check_no_collision(loss: Callable, program: Any, role: str, num_args: int) -> None:
    """A program's argument named as an option of the loss would not be passed on, in silence."""
    options, program = _options_of(loss), unwrapped(program)
    by_keyword = list(_parameters_of(program))[num_args:]
    bound = getattr(program, "keywords", {})  # by functools.partial
    taken = [name for name in by_keyword if name in options and name not in bound]
    if taken:
        fail(
            ValueError,
            f"argument {taken[0]!r} of the {role} has the name of an option of {loss.__name__}",
            expected=f"arguments of the {role} named otherwise than the options {sorted(options)}",
            found=f"{taken} among the arguments of the {role}",
            hint=f"rename it, pass it by position, or bind it by functools.partial({role}, {taken[0]}=...)",
        )


def layers(program: Any) -> Iterator[Any]:
    """A program and those inside of it: the handlers around it, then what they wrap."""
    yield program
    while isinstance(program, Messenger) and program.fn is not None:
        program = program.fn
        yield program


def unwrapped(program: Any) -> Any:
    """A program without the handlers around it."""
    return list(layers(program))[-1]


_OPTIONS = {
    *("num_particles", "num_sleep_particles", "insomnia", "phi_steps", "control_variate", "defensive", "gradient"),
    *(
        "defensive_guide",
        "vectorize_particles",
        "chunk_size",
        "particle_sharding",
        "data_axes",
        "compile_after",
        "max_compiled",
        "shared_params",
        "simulated_data_to_args",
        "observed_sites",
    ),
}


def _options_of(loss: Callable) -> set[str]:
    return {p.name for p in inspect.signature(loss).parameters.values() if p.kind == p.KEYWORD_ONLY}


def _parameters_of(program: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(unwrapped(program)).parameters.values()
    except (TypeError, ValueError):  # not every callable tells
        return {}
    return {p.name: p for p in parameters if p.kind != p.VAR_KEYWORD}


def check_state(value: Any, kind: type, what: str = "the first argument of step") -> None:
    """A step takes the state first."""
    if not isinstance(value, kind):
        fail(
            TypeError,
            f"{what} is not a state",
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


def fail_jitted(error: Exception) -> NoReturn:
    """Programs that are to branch in Python were traced all the same."""
    fail(
        TypeError,
        "option 'vectorize_particles' is False, but the call is traced by jit, scan or vmap",
        expected="a call outside of JAX transformations other than grad: programs branch in Python on sampled values",
        found=str(error).split("\n")[0][:200],
        hint="call it un-jitted; to compile, branch by numpyro.contrib.control_flow.cond or handlers.mask instead",
    )


def fail_static(error: Exception) -> NoReturn:
    """A program runs with concrete arguments, but not with traced ones."""
    fail(
        TypeError,
        "model or guide cannot be compiled: they use a value that is known at run time only",
        expected="Python control flow and shapes that depend on static values only",
        found=str(error).split("\n")[0][:200],
        hint="bind flags and sizes by functools.partial(model, ...); branch on sites with infer={'branching': True}, by"
        " numpyro.contrib.control_flow.cond or handlers.mask, or in Python with vectorize_particles=False",
    )
