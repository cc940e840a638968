"""A traced function, evaluated and differentiated equation by equation.

Each kind of equation of a jaxpr is compiled once, for whichever functions have it. What is called a few times only is
done long before a whole function would be compiled.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from rws_jax.core.equations import Function, Kind, function_of, is_float_aval, params_of


class Interpreted:
    """A function whose jaxpr is given; equal equations are evaluated once, and those that no output needs never."""

    def __init__(self, jaxpr: ClosedJaxpr, differentiated: Sequence[int]) -> None:
        """Take a jaxpr, and which of its inputs gradients are asked for: floats."""
        self._start: list[Any] = []  # constants, and None for each number that is yet to come
        self._slots: dict[Var, int] = {}
        self._inputs = [self._slot(var) for var in jaxpr.jaxpr.invars]
        self._literals: dict[Hashable, int] = {}
        for var, value in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            self._slot(var, value)
        self._differentiated = [self._inputs[place] for place in differentiated]
        found = self._different(jaxpr.jaxpr.eqns)
        self._outputs = [self._slot_of(atom) for atom in jaxpr.jaxpr.outvars]
        self._moving = set(self._differentiated)  # slots that have a derivative
        self._steps = [self._step(*each) for each in self._needed(found)]

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
                if step.backward is None:
                    for place in step.moving:
                        add(step.inputs[place], own[0])
                    continue
                slots = [step.inputs[place] for place in step.moving]
                before = [sums[slot] for slot in slots[: step.num_added]]
                grads = step.backward([values[slot] for slot in step.inputs], own, before, step.moving)
                sums.update(zip(slots, grads[: step.num_added], strict=False))
                for slot, grad in zip(slots[step.num_added :], grads[step.num_added :], strict=True):
                    add(slot, grad)
        return [sums[slot] for slot in self._differentiated]

    def _different(self, eqns: Sequence[JaxprEqn]) -> list[tuple[JaxprEqn, tuple[int, ...], tuple[int, ...]]]:
        """Those of the equations that differ, with slots of inputs and outputs."""
        known: dict[Hashable, tuple[int, ...]] = {}
        found = []
        for eqn in eqns:
            inputs = tuple([self._slot_of(atom) for atom in eqn.invars])
            key = None if eqn.effects else (eqn.primitive, params_of(eqn), inputs)
            outputs = known.get(key) if key is not None else None
            if outputs is None:
                outputs = tuple([self._slot(var) for var in eqn.outvars])
                found.append((eqn, inputs, outputs))
                if key is not None:
                    known[key] = outputs
            else:
                self._slots.update(zip(eqn.outvars, outputs, strict=True))
        return found

    def _needed(
        self, found: list[tuple[JaxprEqn, tuple[int, ...], tuple[int, ...]]]
    ) -> list[tuple["Function", tuple[int, ...], tuple[int, ...]]]:
        """Functions for those of the equations that outputs need, of what they need of each."""
        needed, kept = set(self._outputs), []
        for eqn, inputs, outputs in reversed(found):
            used = tuple([slot in needed for slot in outputs])
            if eqn.effects or any(used):
                function = function_of(Kind.of(eqn, used))
                inputs = tuple([inputs[place] for place in function.inputs])
                needed.update(inputs)
                kept.append((function, inputs, tuple([outputs[place] for place in function.outputs])))
        return kept[::-1]

    def _step(self, function: "Function", inputs: tuple[int, ...], outputs: tuple[int, ...]) -> "_Step":
        moving = tuple([place for place in function.floats if inputs[place] in self._moving])
        if moving:
            self._moving.update([outputs[place] for place in function.float_outputs])
        added = tuple([p for p in moving if inputs[p] in self._differentiated and inputs.count(inputs[p]) == 1])
        moving = (*added, *[place for place in moving if place not in added])
        return _Step(function.forward, function.backward, inputs, outputs, moving, len(added))

    def _slot(self, var: Var | None = None, value: Any = None) -> int:
        self._start.append(value)
        if var is not None:
            self._slots[var] = len(self._start) - 1
        return len(self._start) - 1

    def _slot_of(self, atom: Any) -> int:
        if not isinstance(atom, Literal):
            return self._slots[atom]
        aval: Any = atom.aval
        value = np.asarray(atom.val, aval.dtype)
        key = value.tobytes(), str(value.dtype), value.shape
        if key not in self._literals:
            self._literals[key] = self._slot(value=_literal(*key))
        return self._literals[key]


class _Step(NamedTuple):
    """An equation: where in the list of all values its inputs and outputs are, and which inputs have a derivative."""

    forward: Any
    backward: Any  # None: each input has the cotangent of the output
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    moving: tuple[int, ...]
    num_added: int  # how many of these, the first ones, are inputs of the whole function: sums so far are added to


def _zeros_like(value: jax.Array) -> jax.Array | None:
    """The cotangent of what nothing depends on; None where there is none."""
    return _zeros(value.shape, str(value.dtype)) if is_float_aval(value) else None


@lru_cache(maxsize=1000)
def _zeros(shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jnp.asarray(np.zeros(shape, dtype))


@lru_cache(maxsize=10_000)
def _literal(data: bytes, dtype: str, shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.frombuffer(data, np.dtype(dtype)).reshape(shape))


@jax.jit
def _sum(left: jax.Array, right: jax.Array) -> jax.Array:
    return left + right
