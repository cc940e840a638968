"""A traced function, evaluated and differentiated equation by equation.

Each kind of equation of a jaxpr is compiled once, for whichever functions have it. What is called a few times only is
done long before a whole function would be compiled.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from rws_jax.core.dependence import without_unused
from rws_jax.core.trees import is_float


class Interpreted:
    """A function whose jaxpr is given; equal equations are evaluated once, and those that no output needs never."""

    def __init__(self, jaxpr: ClosedJaxpr, differentiated: Sequence[int]) -> None:
        """Take a jaxpr, and which of its inputs gradients are asked for: floats."""
        jaxpr = without_unused(jaxpr)
        self._start: list[Any] = []  # constants, and None for each number that is yet to come
        self._inputs = [self._slot() for _ in jaxpr.jaxpr.invars]
        self._slots: dict[Var, int] = dict(zip(jaxpr.jaxpr.invars, self._inputs, strict=True))
        self._literals: dict[Hashable, int] = {}
        for var, value in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            self._slots[var] = self._slot(value)
        self._differentiated = [self._inputs[place] for place in differentiated]
        self._moving = set(self._differentiated)  # slots that have a derivative
        self._steps: list[_Step] = []
        known: dict[Hashable, tuple[int, ...]] = {}
        nameless = jaxpr.jaxpr.debug_info._replace(arg_names=None, result_paths=None)
        empty = jaxpr.jaxpr.replace(constvars=[], invars=[], outvars=[], eqns=[], debug_info=nameless)
        for eqn in jaxpr.jaxpr.eqns:
            self._add(eqn, _Kind.of(eqn, empty), known)
        self._outputs = [self._slot_of(atom) for atom in jaxpr.jaxpr.outvars]

    def __call__(self, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Outputs, and all values on the way, which `gradients` needs."""
        values = self._start.copy()
        for slot, value in zip(self._inputs, inputs, strict=True):
            values[slot] = value
        for step in self._steps:
            for slot, value in zip(step.outputs, step.forward(*[values[slot] for slot in step.inputs]), strict=True):
                values[slot] = value
        return [values[slot] for slot in self._outputs], values

    def gradients(self, values: list[Any], cotangents: Sequence[Any], totals: Sequence[Any]) -> list[Any]:
        """Gradients of the inputs that are differentiated, added to `totals`, given cotangents of the first outputs."""
        sums: dict[int, Any] = dict(zip(self._differentiated, totals, strict=True))

        def add(slot: int, cotangent: Any) -> None:
            sums[slot] = _sum(sums[slot], cotangent) if slot in sums else cotangent

        for slot, cotangent in zip(self._outputs, cotangents, strict=False):
            if slot in self._moving:
                add(slot, cotangent)
        for step in reversed(self._steps):
            if step.moving and any(slot in sums for slot in step.outputs):
                own = [sums.pop(slot) if slot in sums else _zeros_like(values[slot]) for slot in step.outputs]
                grads = step.backward([values[slot] for slot in step.inputs], own, step.moving)
                for place, grad in zip(step.moving, grads, strict=True):
                    add(step.inputs[place], grad)
        return [sums[slot] for slot in self._differentiated]

    def _add(self, eqn: JaxprEqn, kind: "_Kind", known: dict[Hashable, tuple[int, ...]]) -> None:
        inputs = tuple(self._slot_of(atom) for atom in eqn.invars)
        key = None if eqn.effects else (kind, inputs)
        outputs = known.get(key) if key is not None else None
        if outputs is None:
            outputs = tuple(self._slot() for _ in eqn.outvars)
            places = [place for place, slot in enumerate(inputs) if slot in self._moving]
            constant = eqn.primitive.name == "stop_gradient"
            moving = () if constant else tuple(p for p in places if is_float(eqn.invars[p].aval))
            if moving:
                self._moving.update(slot for slot, var in zip(outputs, eqn.outvars, strict=True) if _is_float(var.aval))
            functions = _functions(kind)
            self._steps.append(_Step(functions.forward, functions.backward, inputs, outputs, moving))
            if key is not None:
                known[key] = outputs
        self._slots.update(zip(eqn.outvars, outputs, strict=True))

    def _slot(self, value: Any = None) -> int:
        self._start.append(value)
        return len(self._start) - 1

    def _slot_of(self, atom: Any) -> int:
        if not isinstance(atom, Literal):
            return self._slots[atom]
        aval: Any = atom.aval
        value = np.asarray(atom.val, aval.dtype)
        key = value.tobytes(), str(value.dtype), value.shape
        if key not in self._literals:
            self._literals[key] = self._slot(_literal(*key))
        return self._literals[key]


class _Step(NamedTuple):
    """An equation: where in the list of all values its inputs and outputs are, and which inputs have a derivative."""

    forward: Any
    backward: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    moving: tuple[int, ...]


@dataclass(frozen=True)
class _Kind:
    """What an equation does, whatever the values it does it to: equal for equal equations."""

    primitive: Any
    key: Hashable
    eqn: JaxprEqn = field(compare=False)
    empty: Jaxpr = field(compare=False)  # to be filled with it

    @classmethod
    def of(cls, eqn: JaxprEqn, empty: Jaxpr) -> "_Kind":
        avals = tuple(atom.aval for atom in eqn.invars)
        params = tuple(sorted(eqn.params.items()))
        try:
            hash(params)
        except TypeError:  # an equation of its own
            params = id(eqn)
        return cls(eqn.primitive, (params, avals), eqn, empty)


class _Functions(NamedTuple):
    forward: Any
    backward: Any


@lru_cache(maxsize=10_000)
def _functions(kind: _Kind) -> _Functions:
    eqn = kind.eqn
    inputs: list[Any] = [Var(atom.aval) for atom in eqn.invars]
    outputs: list[Any] = [Var(atom.aval) for atom in eqn.outvars]
    alone = [eqn.replace(invars=inputs, outvars=outputs)]
    run = jaxpr_as_fun(ClosedJaxpr(kind.empty.replace(invars=inputs, outvars=outputs, eqns=alone), []))

    def backward(values: list[Any], cotangents: list[Any], moving: tuple[int, ...]) -> tuple[Any, ...]:
        def outputs_of(*of_moving: Any) -> list[Any]:
            given = dict(zip(moving, of_moving, strict=True))
            return run(*[given.get(place, value) for place, value in enumerate(values)])

        outputs, pullback = jax.vjp(outputs_of, *[values[place] for place in moving])
        none = [np.zeros(output.shape, jax.dtypes.float0) for output in outputs]  # as JAX wants it
        return pullback([zero if ct is None else ct for ct, zero in zip(cotangents, none, strict=True)])

    return _Functions(jax.jit(run), jax.jit(backward, static_argnums=2))


def _zeros_like(value: jax.Array) -> jax.Array | None:
    """The cotangent of what nothing depends on; None where there is none."""
    return _zeros(value.shape, str(value.dtype)) if _is_float(value) else None


@lru_cache(maxsize=1000)
def _zeros(shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jnp.asarray(np.zeros(shape, dtype))


def _is_float(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact)


@lru_cache(maxsize=10_000)
def _literal(data: bytes, dtype: str, shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.frombuffer(data, np.dtype(dtype)).reshape(shape))


@jax.jit
def _sum(left: jax.Array, right: jax.Array) -> jax.Array:
    return left + right
