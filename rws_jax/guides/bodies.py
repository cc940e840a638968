"""The bodies of scan and cond, where a guide proposes as well.

A scan carries a recurrent state beside the model's own, of what has been drawn in the steps before, and runs along the
embeddings of its steps' data.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from numpyro.handlers import block, seed

from rws_jax.core.layers import ProgramFn
from rws_jax.core.numpyro_internals import is_cond
from rws_jax.core.sites import Site
from rws_jax.guides.context import Data, Drawn, Plates
from rws_jax.guides.networks import recurrent, total


@dataclass
class Scans:
    """The scans of one body so far, named as they come: scan, scan 2, ...; those within one, scan/scan, ..."""

    path: str = ""
    count: int = 0

    def next(self) -> str:
        """The name of the next scan."""
        self.count += 1
        return f"{self.path}scan" if self.count == 1 else f"{self.path}scan {self.count}"


class Handler(Protocol):
    """What is needed here of the handler that proposes."""

    guide: Any
    data: Data
    drawn: list[Drawn]
    scans: Scans
    running: list[dict[str, Plates]]  # of each scan or cond that runs, the plates of what has been drawn

    def inside(self, fn: ProgramFn | None, data: Data, drawn: list[Drawn], scans: Scans) -> Any:
        """The handler of a body within this one."""
        ...


def enter(handler: Handler, msg: Site) -> None:
    """Put a handler into the bodies of a scan or cond."""
    msg["args"] = (_branches if is_cond(msg) else _steps)(handler, *msg["args"])


def leave(handler: Handler, msg: Site) -> None:
    """Take what has been drawn out of what a body returns, and keep it for sites that come later."""
    if is_cond(msg):
        (result, values), trace = msg["value"]
        msg["value"] = result, trace
    else:
        (number, rng_key, (carry, values)), rest = msg["value"]
        msg["value"] = (number, rng_key, carry), rest
    plates = handler.running.pop()
    handler.drawn += [Drawn(name, value, plates[name]) for name, value in values.items()]


def _branches(handler: Handler, predicate: Any, *bodies_and_operand: Any) -> tuple:
    *bodies, operand = bodies_and_operand
    plates: dict[str, Plates] = {}
    handler.running.append(plates)

    def branch(body: ProgramFn, operand: Any) -> tuple:
        inside = handler.inside(body, handler.data, handler.drawn, handler.scans)
        result, drawn = inside(operand), inside.drawn[len(handler.drawn) :]
        plates.update({one.name: one.plates for one in drawn})
        return result, {one.name: one.value for one in drawn}

    return predicate, *(partial(branch, body) for body in bodies), operand


def _steps(handler: Handler, body: ProgramFn, carry: Any, xs: Any, length: int | None, reverse: bool) -> tuple:
    num_steps = len(jax.tree.leaves(xs)[0]) if length is None else length
    name = handler.scans.next()
    networks = handler.guide.tree["scans"].get(name, {})
    slices, data_at = handler.data.along_scan(num_steps, reverse, networks.get("backward"))
    cell = networks.get("forward")
    plates: Plates = {}  # of the recurrent state
    handler.running.append({name: plates})

    def run(state: dict[str, jax.Array], carry: Any, x: Any, data: Any) -> tuple[Any, Any]:
        before = [*handler.drawn, *(Drawn(name, value, plates) for value in state.values())]
        inside = handler.inside(body, data_at(data), before, Scans(f"{name}/"))
        return inside(carry, x), inside.drawn[len(before) :]

    def step(carry_and_state: tuple, x_and_data: tuple) -> tuple:
        (carry, state), (x, data) = carry_and_state, x_and_data
        (carry, y), drawn = run(state, carry, x, data)
        return (carry, {name: recurrent(cell, old, _summary(drawn, old)) for name, old in state.items()}), y

    def first_summary(carry: Any, x: Any, data: Any) -> jax.Array:
        state = jnp.zeros(handler.guide.hidden)
        in_one_step: Any = seed(run, jax.random.key(0))
        with block():  # this run is for its shapes alone
            _, drawn = in_one_step({name: state}, carry, x, data)
        for one in drawn:
            plates.update(one.plates)
        return _summary(drawn, state)

    state = {}
    if cell is not None:
        row = lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf))
        shape = jax.eval_shape(first_summary, carry, *jax.tree.map(row, (xs, slices))).shape
        state = {name: jnp.zeros(shape)}
    return step, (carry, state), (xs, slices), num_steps, reverse


def _summary(drawn: list[Drawn], state: jax.Array) -> jax.Array:
    """The sum of what one step has drawn."""
    num_dims = max([one.value.ndim for one in drawn] + [state.ndim])
    raised = [one.value.reshape((1,) * (num_dims - one.value.ndim) + one.value.shape) for one in drawn]
    return total([*raised, jnp.zeros((1,) * (num_dims - 1) + state.shape[-1:])])
