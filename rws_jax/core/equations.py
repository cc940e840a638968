"""One equation of a jaxpr, compiled forward and back: once for each kind, whichever function it is of."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from rws_jax.core.dependence import without_unused


@dataclass(frozen=True)
class Kind:
    """What an equation does, whatever the values it does it to: equal for equal equations."""

    primitive: Any
    params: Hashable
    avals: tuple
    used: tuple[bool, ...]  # which of its outputs
    eqn: JaxprEqn = field(compare=False)

    @classmethod
    def of(cls, eqn: JaxprEqn, used: tuple[bool, ...]) -> "Kind":
        """That of an equation, and of some of its outputs."""
        return cls(eqn.primitive, params_of(eqn), tuple([atom.aval for atom in eqn.invars]), used, eqn)


def params_of(eqn: JaxprEqn) -> Hashable:
    """The parameters of an equation; where they cannot be compared, a number that no other equation has."""
    params = tuple(sorted(eqn.params.items()))
    try:
        hash(params)
    except TypeError:  # an equation of its own
        return id(eqn)
    return params


class Function(NamedTuple):
    """An equation compiled, forward and back, of those of its inputs and outputs that are needed."""

    forward: Any
    backward: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    floats: tuple[int, ...]  # which of these inputs have a derivative, if any of what they depend on has
    float_outputs: tuple[int, ...]


@lru_cache(maxsize=10_000)
def function_of(kind: Kind) -> Function:
    """The function of a kind of equation, kept for all that come."""
    outputs = tuple(place for place, is_used in enumerate(kind.used) if is_used)
    jaxpr = _body(kind.eqn, outputs)
    read = {var for eqn in jaxpr.jaxpr.eqns for var in eqn.invars if not isinstance(var, Literal)}
    read |= {var for var in jaxpr.jaxpr.outvars if not isinstance(var, Literal)}
    inputs = tuple(place for place, var in enumerate(jaxpr.jaxpr.invars) if var in read)
    invars = [jaxpr.jaxpr.invars[place] for place in inputs]
    run = jaxpr_as_fun(ClosedJaxpr(jaxpr.jaxpr.replace(invars=invars, debug_info=_empty().debug_info), jaxpr.consts))

    def backward(values: list[Any], cotangents: list[Any], totals: list[Any], moving: tuple[int, ...]) -> list[Any]:
        def outputs_of(*of_moving: Any) -> list[Any]:
            given = dict(zip(moving, of_moving, strict=True))
            return run(*[given.get(place, value) for place, value in enumerate(values)])

        results, pullback = jax.vjp(outputs_of, *[values[place] for place in moving])
        none = [np.zeros(result.shape, jax.dtypes.float0) for result in results]  # as JAX wants it
        grads = pullback([zero if ct is None else ct for ct, zero in zip(cotangents, none, strict=True)])
        return [total + grad for total, grad in zip(totals, grads, strict=False)] + list(grads[len(totals) :])

    name = kind.eqn.primitive.name
    is_sum = name in ("add", "add_any") and len({jnp.shape(aval) for aval in kind.avals}) == 1
    floats = tuple(place for place, var in enumerate(invars) if is_float_aval(var.aval))
    return Function(
        jax.jit(run),
        None if is_sum else jax.jit(backward, static_argnums=3),
        inputs,
        outputs,
        () if name == "stop_gradient" else floats,
        tuple(place for place, var in enumerate(jaxpr.jaxpr.outvars) if is_float_aval(var.aval)),
    )


def _body(eqn: JaxprEqn, outputs: tuple[int, ...]) -> ClosedJaxpr:
    """Some outputs of an equation as a function of all of its inputs; a function that it calls is taken as its body."""
    called: Any = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") and not eqn.effects else None
    outvars = [called.jaxpr.outvars[place] for place in outputs] if isinstance(called, ClosedJaxpr) else []
    if outvars and not any(isinstance(var, Literal) for var in outvars):  # which has no type of its own there
        inner = called.jaxpr
        return without_unused(
            ClosedJaxpr(inner.replace(outvars=outvars, debug_info=_empty().debug_info), called.consts)
        )
    invars: list[Any] = [Var(atom.aval) for atom in eqn.invars]
    own: list[Any] = [Var(atom.aval) for atom in eqn.outvars]
    alone = [eqn.replace(invars=invars, outvars=own)]
    kept = [own[place] for place in outputs]
    return ClosedJaxpr(_empty().replace(invars=invars, outvars=kept, eqns=alone, effects=eqn.effects), [])


@lru_cache(maxsize=1)
def _empty() -> Jaxpr:
    """To be filled; without names of arguments."""
    jaxpr = jax.make_jaxpr(lambda: ())().jaxpr
    return jaxpr.replace(debug_info=jaxpr.debug_info._replace(arg_names=None, result_paths=None))


def is_float_aval(array: Any) -> bool:
    """Whether an array, or what JAX knows of one before it is computed, has floats."""
    return _is_float_type(array.dtype)


@lru_cache(maxsize=100)
def _is_float_type(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)
