"""Which outputs of a traced function depend on which of its inputs: what its jaxpr says, whatever the values.

An output depends on an input if arithmetic leads from the one to the other. Shapes are not arithmetic, nor is which
numbers are missing: what is made of `x.shape`, by `jnp.zeros_like(x)` or by `jnp.isnan(x)` does not depend on `x`;
``0 * x`` does.
"""

from collections.abc import Iterable
from functools import reduce
from operator import or_

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

# Primitives that do nothing but call the one jaxpr among their parameters.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
_CALLS |= {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


def in_part(mask: jax.Array, value: jax.Array, rest: jax.Array) -> jax.Array:
    """``jnp.where(mask, value, rest)`` that does not count as depending on `rest`."""
    return jax.jit(_rws_jax_in_part)(
        mask, value, rest
    )  # so that it is found in a jaxpr, by its name; XLA sees through it


def _rws_jax_in_part(mask: jax.Array, value: jax.Array, rest: jax.Array) -> jax.Array:
    return jnp.where(mask, value, rest)


def dependence(jaxpr: ClosedJaxpr, *, also_missing: bool = False) -> list[set[int]]:
    """For each output, the inputs that it may depend on, or `also_missing` numbers of which it may depend on.

    Exact through loops, branches and nested calls; a primitive of unknown inner workings counts as using all of its
    inputs for all of its outputs.
    """
    num = len(jaxpr.in_avals)
    outputs = _outputs(jaxpr.jaxpr, [1 << i for i in range(num)], also_missing)
    return [{i for i in range(num) if output >> i & 1} for output in outputs]


def without_unused(jaxpr: ClosedJaxpr) -> ClosedJaxpr:
    """The same function without the operations that none of its outputs needs."""
    needed, kept = {var for var in jaxpr.jaxpr.outvars if not isinstance(var, Literal)}, []
    for eqn in reversed(jaxpr.jaxpr.eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            kept.append(eqn)
            needed.update(var for var in eqn.invars if not isinstance(var, Literal))
    return ClosedJaxpr(jaxpr.jaxpr.replace(eqns=kept[::-1]), jaxpr.consts)


def _outputs(jaxpr: Jaxpr, inputs: list[int], also_missing: bool) -> list[int]:
    """Sets of inputs as the bits of integers: those of each output, from those that each variable depends on."""
    reached = dict(zip(jaxpr.invars, inputs, strict=True))
    escaped = 0  # into the host or a mutable array, from where it may come back anywhere
    of = lambda var: escaped | (0 if isinstance(var, Literal) else reached.get(var, 0))
    for eqn in jaxpr.eqns:
        into = [of(var) for var in eqn.invars]
        if any(type(effect).__name__ != "DebugEffect" for effect in eqn.effects):
            escaped |= _union(into)
        out = [escaped | bits for bits in _through(eqn, into, also_missing)] if any(into) else [0] * len(eqn.outvars)
        reached.update(zip(eqn.outvars, out, strict=True))
    return [of(var) for var in jaxpr.outvars]


def _through(eqn: JaxprEqn, into: list[int], also_missing: bool) -> list[int]:
    """What one equation makes of its inputs."""
    name, params = eqn.primitive.name, eqn.params
    is_missing = name == "is_finite" or (name in ("eq", "ne") and eqn.invars[0] is eqn.invars[1])  # what is a number
    if is_missing and not also_missing:
        return [0]
    if name == "scan":
        body = _opened(params["jaxpr"])
        # Rows are of one axis less than what is scanned over; the names of these parameters differ between releases.
        is_row = lambda whole, inner: whole.aval.ndim != inner.aval.ndim
        num_xs = sum(map(is_row, eqn.invars, body.invars))
        num_carry = len(eqn.outvars) - sum(map(is_row, eqn.outvars, body.outvars))
        split = len(into) - num_xs - num_carry, len(into) - num_xs
        carry = into[split[0] : split[1]]
        while True:
            out = _outputs(body, [*into[: split[0]], *carry, *into[split[1] :]], also_missing)
            after = [a | b for a, b in zip(carry, out, strict=False)]
            if after == carry:
                return [*carry, *out[len(carry) :]]
            carry = after
    if name == "while":
        split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        carry = into[split[1] :]
        while True:
            out = _outputs(_opened(params["body_jaxpr"]), [*into[split[0] : split[1]], *carry], also_missing)
            again = _outputs(_opened(params["cond_jaxpr"]), [*into[: split[0]], *carry], also_missing)
            after = [again[0] | a | b for a, b in zip(carry, out, strict=True)]
            if after == carry:
                return carry
            carry = after
    if name == "cond":
        branches = [_outputs(_opened(branch), into[1:], also_missing) for branch in params["branches"]]
        return [into[0] | _union(out) for out in zip(*branches, strict=True)]
    if name in _CALLS:
        if params.get("name") == _rws_jax_in_part.__name__ and not also_missing:
            return [into[0] | into[1]]
        inner = [param for param in params.values() if isinstance(param, Jaxpr | ClosedJaxpr)]
        if len(inner) == 1:
            return _outputs(_opened(inner[0]), into, also_missing)
    return [_union(into)] * len(eqn.outvars)


def _opened(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _union(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)
