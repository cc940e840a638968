"""How much arithmetic a traced function is: an estimate from its jaxpr, before anything is compiled."""

import math
from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal


def work(jaxpr: ClosedJaxpr) -> int:
    """Floating point operations, about: one for each number that is computed, and two for each product in a sum."""
    return sum(map(_work_of, jaxpr.jaxpr.eqns))


def work_by_group(jaxpr: ClosedJaxpr, groups: Sequence[int]) -> list[int]:
    """The same for each group of outputs alone: `groups` are the numbers of outputs, one after the other."""
    outputs, found, start = jaxpr.jaxpr.outvars, [], 0
    for size in groups:
        needed = {var for var in outputs[start : start + size] if not isinstance(var, Literal)}
        total, start = 0, start + size
        for eqn in reversed(jaxpr.jaxpr.eqns):
            if not needed.isdisjoint(eqn.outvars):
                needed.update(var for var in eqn.invars if not isinstance(var, Literal))
                total += _work_of(eqn)
        found.append(total)
    return found


def _work_of(eqn: JaxprEqn) -> int:
    name, params = eqn.primitive.name, eqn.params
    size = sum(math.prod(_shape(var)) for var in eqn.outvars)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * size * math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(eqn.invars[1])
        return 2 * size * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    inner = [jaxpr for param in params.values() for jaxpr in _jaxprs(param)]
    if not inner:
        return size
    times = params.get("length", 1) if name == "scan" else 1
    return times * sum(_work_of(one) for jaxpr in inner for one in jaxpr.eqns)


def _shape(var: Any) -> tuple[int, ...]:
    return getattr(var.aval, "shape", ())


def _jaxprs(param: Any) -> list[Jaxpr]:
    if isinstance(param, ClosedJaxpr):
        return [param.jaxpr]
    if isinstance(param, Jaxpr):
        return [param]
    return [one for part in param for one in _jaxprs(part)] if isinstance(param, tuple | list) else []
