"""Functions in which equal operations on equal inputs are done once, before they are differentiated.

XLA merges equal operations as well, but late: of a function that computes one thing twice, JAX differentiates both, and
what comes back to each of them is different. Merged before, they have one derivative.
"""

import os
from collections.abc import Hashable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

_CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
_OF_JAX = os.path.dirname(jax.__file__) + os.sep
_MAX_BYTES = 2**20  # of a constant that is compared by its values


def merged(jaxpr: ClosedJaxpr) -> ClosedJaxpr:
    """The same function, in which equal operations are done once."""
    return _Merge().of(jaxpr)


@cache
def _clone() -> JaxprEqn:
    """The equation that clones a key; not made as this is imported, which is to start no device."""
    return jax.make_jaxpr(jax.random.clone)(jax.eval_shape(jax.random.key, 0)).eqns[0]


class _Merge:
    """Names what is equal: jaxprs by what they do, constants by their values."""

    def __init__(self) -> None:
        # By id, of jaxprs, within a rule or not, and of what has no hash; all are kept, so that ids stay theirs.
        self._keys: dict[tuple[int, bool], tuple[Any, Hashable]] = {}
        self._in_rule = False

    def of(self, jaxpr: ClosedJaxpr) -> ClosedJaxpr:
        """The same jaxpr with equal equations merged.

        A key that is computed once is used by all that used its equals. Each of these has a clone of it, as JAX's check
        of reuse asks for.
        """
        first: dict[Hashable, list[Any]] = {}  # of each thing that is computed, the variables that have it first
        name: dict[Any, Any] = {}  # of a variable, the one that has its value first
        same: dict[Any, Any] = {}  # of a variable that is no more, the one that is there
        for var, const in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            same[var] = name[var] = first.setdefault(_const_key(const), [var])[0]
        eqns: list[JaxprEqn] = []
        where: dict[Hashable, int] = {}  # the equation that computes each thing
        for eqn in jaxpr.jaxpr.eqns:
            inputs = [var if isinstance(var, Literal) else same.get(var, var) for var in eqn.invars]
            named = [var if isinstance(var, Literal) else name.get(var, var) for var in eqn.invars]
            eqn = eqn.replace(invars=inputs)
            if eqn.primitive is _clone().primitive:
                name[eqn.outvars[0]] = named[0]
            elif not eqn.effects:
                key = self._operation(eqn), *map(_input_key, named)
                if key in first:
                    eqns[where[key]], first[key] = _with_unused(eqns[where[key]], eqn.outvars)
                    for var, one in zip(eqn.outvars, first[key], strict=True):
                        name[var] = name.get(one, one)
                        if one is var:  # nobody had used it so far
                            continue
                        if jnp.issubdtype(getattr(var.aval, "dtype", bool), jax.dtypes.prng_key):
                            eqns.append(_clone().replace(invars=[one], outvars=[var]))
                        else:
                            same[var] = one
                    continue
                first[key], where[key] = eqn.outvars, len(eqns)
            eqns.append(eqn)
        outputs = [var if isinstance(var, Literal) else same.get(var, var) for var in jaxpr.jaxpr.outvars]
        return ClosedJaxpr(jaxpr.jaxpr.replace(eqns=eqns, outvars=outputs), jaxpr.consts)

    def _operation(self, eqn: JaxprEqn) -> Hashable:
        """What an equation does with its inputs."""
        params = eqn.params
        if eqn.primitive.name in _CUSTOM:
            rule = self._rule(eqn)
            if rule is None:  # two of one body may have different derivatives
                return id(eqn)
            params = {name: value for name, value in params.items() if name != "jvp_jaxpr_fun"} | {"rule": rule}
        return eqn.primitive, tuple((name, self._param(params[name])) for name in sorted(params))

    def _rule(self, eqn: JaxprEqn) -> Hashable | None:
        """How a function is differentiated whose derivative is defined by hand; None if that cannot be compared.

        A rule may call the function itself. Within a rule, those of JAX's own functions are taken to be known by name.
        """
        if eqn.primitive.name != "custom_jvp_call":
            return None
        rule = eqn.params["jvp_jaxpr_fun"]
        if self._in_rule:
            sources = [_source(_opened(eqn.params["call_jaxpr"])), _source(rule)]
            return tuple(sources) if all(source and _OF_JAX in source for source in sources) else None
        inputs = eqn.invars[eqn.params["num_consts"] :]
        self._in_rule = True
        try:
            derivative, consts, is_zero = rule.call_wrapped(*(not _is_float(var) for var in inputs))
            return self._param(derivative), tuple(map(_const_key, consts)), tuple(is_zero)
        except Exception:  # an error of the user's rule shows where it is called
            return None
        finally:
            self._in_rule = False

    def _param(self, value: Any) -> Hashable:
        if isinstance(value, ClosedJaxpr | Jaxpr):
            which = id(value), self._in_rule
            if which not in self._keys:
                self._keys[which] = value, self._jaxpr(value)
            return self._keys[which][1]
        if isinstance(value, tuple | list):
            return type(value), tuple(map(self._param, value))
        try:
            hash(value)
        except TypeError:
            self._keys.setdefault((id(value), False), (value, None))
            return "id", id(value)
        return type(value), repr(value) if isinstance(value, float | complex | np.inexact) else value

    def _jaxpr(self, jaxpr: ClosedJaxpr | Jaxpr) -> Hashable:
        """What a jaxpr does, whatever the names of its variables."""
        opened = _opened(jaxpr)
        consts = jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ()
        number: dict[Any, int] = {}
        name = lambda var: _input_key(var) if isinstance(var, Literal) else number[var]
        for var in (*opened.constvars, *opened.invars):
            number[var] = len(number)
        eqns = []
        for eqn in opened.eqns:
            if eqn.effects:
                return "id", id(jaxpr)
            eqns.append((self._operation(eqn), *map(name, eqn.invars)))
            for var in eqn.outvars:
                number[var] = len(number)
        avals = tuple(str(var.aval) for var in (*opened.constvars, *opened.invars))
        return avals, tuple(map(_const_key, consts)), tuple(eqns), tuple(map(name, opened.outvars))


def _with_unused(eqn: JaxprEqn, outvars: list[Any]) -> tuple[JaxprEqn, list[Any]]:
    """An equation with these names for the outputs that nobody has used so far; and its outputs."""
    is_unused = lambda var: type(var).__name__ == "DropVar"
    both = zip(eqn.outvars, outvars, strict=True)
    outvars = [other if is_unused(var) else var for var, other in both]
    return eqn.replace(outvars=outvars), outvars


def _input_key(var: Any) -> Hashable:
    return (str(var.aval), _const_key(var.val)) if isinstance(var, Literal) else var


def _const_key(value: Any) -> Hashable:
    """Equal for equal constants."""
    dtype = jnp.result_type(value)
    if isinstance(value, Tracer) or jnp.issubdtype(dtype, jax.dtypes.extended):
        return "id", id(value)
    if np.size(value) * dtype.itemsize > _MAX_BYTES or not getattr(value, "is_fully_addressable", True):
        return "id", id(value)
    is_weak = isinstance(value, bool | int | float | complex) or bool(getattr(value, "weak_type", False))
    return str(dtype), is_weak, np.shape(value), np.asarray(value, dtype).tobytes()


def _opened(jaxpr: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _is_float(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)


def _source(function: Any) -> str:
    """Where a function was written, if JAX knows."""
    return getattr(function.debug_info, "func_src_info", None) or ""
