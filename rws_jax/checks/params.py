"""What the values of parameters must be, and the messages that say so."""

from collections.abc import Iterable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpyro.distributions import constraints

from rws_jax.core.errors import fail
from rws_jax.core.sites import Site, Trace
from rws_jax.core.supports import range_of
from rws_jax.core.trees import is_traced


def check_param(role: str, name: str, values: dict[str, Any], *, is_held: bool = False) -> None:
    """A param site must have a value, among the model's if the program holds it constant."""
    if name in values:
        return
    if is_held:
        _fail_unowned(role, name, values)
    else:
        symbol = "theta" if role == "model" else "phi"
        fail(
            ValueError,
            f"param site {name!r} of the {role} has no value in {symbol}, or in params of both programs",
            expected=f"the key {name!r}",
            found=f"keys {sorted(values)}",
            hint=f"{symbol} holds a value for each numpyro.param of the {role}; a state belongs to the programs it"
            " was made with, and those that branch in Python take all parameters before they branch",
        )


def check_held(theta: Trace, held: Trace) -> None:
    """What a guide reads of the model's parameters must be the model's, and declared alike, as it is one value."""
    for name, site in held.items():
        if name not in theta:
            _fail_unowned("guide", name, theta)
        check_alike(name, theta[name], site, "held")


def check_none_held(held: Trace) -> None:
    """A model owns its parameters."""
    if held:
        fail(
            ValueError,
            f"param sites {sorted(held)} of the model are held",
            expected="a model that owns its parameters; a guide may hold those of the model",
            found="rws_jax.programs.held.held around a part of the model",
            hint="put held around parts of the guide alone; with optax.set_to_zero() the model keeps its parameters",
        )


def check_alike(name: str, site: Site, other: Site, kind: str) -> None:
    """A param site that occurs in both programs has one value, which has to fit both."""
    own, others = ((_shapes(each["value"]), str(each["kwargs"].get("constraint"))) for each in (site, other))
    if own != others:
        fail(
            ValueError,
            f"{kind} param site {name!r} differs between model and guide",
            expected=f"shape {own[0]}, constraint {own[1]}, as in the model",
            found=f"shape {others[0]}, constraint {others[1]} in the guide",
            hint="declare it alike in both programs",
        )


def check_all_found(names: Iterable[str], found: dict[str, Any]) -> None:
    """The constraints of parameters are known once programs have run that have them."""
    missing = sorted(set(names) - found.keys())
    if missing:
        fail(
            ValueError,
            f"param sites {missing} of the state were not met when the programs ran",
            expected="programs that take all of their parameters",
            found=f"param sites {sorted(found)}",
            hint="pass the state that belongs to these programs; take parameters at their top, not in branches",
        )


def check_constrained(role: str, site: Site) -> None:
    """A value that is known lies where the program declares that it does; a float may be rounded to the border."""
    value, constraint = site["value"], site["kwargs"].get("constraint", constraints.real)
    numbers = range_of(constraint) if _is_array(value) and constraint is not constraints.real else None
    if numbers is None or is_traced((value, numbers.low, numbers.high)):
        return
    value = np.asarray(value)
    if not np.all((value >= numbers.low) & (value <= numbers.high) | np.isnan(value)):
        symbol = "theta" if role == "model" else "phi"
        fail(
            ValueError,
            f"the value of param site {site['name']!r} of the {role} is outside of its constraint",
            expected=f"{constraint}",
            found=f"{value}" if value.ndim == 0 else f"values from {value.min()} to {value.max()}",
            hint=f"{symbol} holds constrained values, as rws.get_params(state, *args) gives them",
        )


def check_value(role: str, site: Site) -> None:
    """A value has the shape of the initial one, where that is a number or an array, and lies within its constraint."""
    value = site["value"]
    initial: Any = site["args"][0] if site["args"] else None
    if _is_array(value) and _is_array(initial) and jnp.shape(value) != jnp.shape(initial):
        fail(
            ValueError,
            f"the value of param site {site['name']!r} of the {role} has another shape than its initial value",
            expected=f"shape {jnp.shape(initial)}",
            found=f"shape {jnp.shape(value)}",
            hint="parameters belong to the programs that they were trained with",
        )
    check_constrained(role, site)


def check_initial(params: dict[str, Any]) -> None:
    """A parameter cannot be trained from where its unconstrained value is infinite."""
    for name, value in params.items():
        if not all(isinstance(leaf, Tracer) or np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(value)):
            fail(
                ValueError,
                f"param site {name!r} starts at the edge of its constraint, or is not finite",
                expected="an initial value in the interior",
                found="an unconstrained value that is infinite or NaN",
                hint="start a positive parameter at 1e-3, say, rather than at 0",
            )


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic | float | int)


def _fail_unowned(role: str, name: str, theta: Iterable[str]) -> NoReturn:
    fail(
        ValueError,
        f"param site {name!r}, which the {role} holds constant, is none of the model's",
        expected=f"one of the model's param sites {sorted(theta)}",
        found=f"numpyro.param({name!r}, ...) within held",
        hint="take it outside of held to train it with the guide",
    )


def _shapes(value: Any) -> Any:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(value)]
    return shapes[0] if len(shapes) == 1 else shapes
