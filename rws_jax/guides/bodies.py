"""The bodies of scan and cond, where a guide proposes as well.

A scan carries a recurrent state beside the model's own, of what has been drawn in the steps before, and runs along the
embeddings of its steps' data.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from numpyro.handlers import block, seed

from rws_jax.core.layers import ProgramFn
from rws_jax.core.numpyro_internals import is_cond
from rws_jax.core.sites import Site
from rws_jax.guides.context import Data, Drawn, total
from rws_jax.guides.networks import recurrent


@dataclass
class Scans:
    """The scans of one body so far, which are named as they come: scan, scan 2, ...; those within one, scan/scan, ..."""

    path: str = ""
    count: int = 0
    running: list[dict[int, str]] = field(default_factory=list)  # for each that runs, the plates of its state

    def next(self) -> str:
        """The name of the next scan."""
        self.count += 1
        return f"{self.path}scan" if self.count == 1 else f"{self.path}scan {self.count}"


class Handler(Protocol):
    """What is needed here of the handler that proposes."""

    guide: Any
    data: Data
    drawn: list[Drawn]
    places: dict[str, Any]
    scans: Scans

    def inside(self, fn: ProgramFn | None, data: Data, drawn: list[Drawn], scans: Scans) -> Any:
        """The handler of a body within this one."""
        ...


def enter(handler: Handler, msg: Site) -> None:
    """Put a handler into the bodies of a scan or cond."""
    if is_cond(msg):
        predicate, *bodies, operand = msg["args"]
        msg["args"] = (predicate, *(_in_branch(handler, body) for body in bodies), operand)
        return
    msg["args"] = _in_steps(handler, *msg["args"])


def leave(handler: Handler, msg: Site) -> None:
    """Take the recurrent state out of what a scan returns, and keep it for sites that come later."""
    if is_cond(msg):
        return
    (number, rng_key, (carry, state)), rest = msg["value"]
    msg["value"] = (number, rng_key, carry), rest
    plates = handler.scans.running.pop()
    if state is not None:
        handler.drawn.append(Drawn(state, plates))


def _in_branch(handler: Handler, body: ProgramFn) -> ProgramFn:
    def branch(operand: Any) -> Any:
        inside = handler.inside(body, handler.data, handler.drawn, handler.scans)
        inside.places = handler.places  # its draws come out of the cond
        return inside(operand)

    return branch


def _in_steps(handler: Handler, body: ProgramFn, carry: Any, xs: Any, length: int | None, reverse: bool) -> tuple:
    num_steps = len(jax.tree.leaves(xs)[0]) if length is None else length
    name = handler.scans.next()
    networks = handler.guide.tree["scans"].get(name, {})
    slices, data_at = handler.data.along_scan(num_steps, reverse, networks.get("backward"))
    cell = networks.get("forward")
    plates: dict[int, str] = {}  # of the recurrent state

    def run(state: Any, carry: Any, x: Any, data: Any) -> tuple[Any, Any]:
        before = handler.drawn if state is None else [*handler.drawn, Drawn(state, plates)]
        inside = handler.inside(body, data_at(data), before, Scans(f"{name}/"))
        result = inside(carry, x)
        drawn = inside.drawn[len(before) :]
        return result, drawn

    def step(carry_and_state: tuple, x_and_data: tuple) -> tuple:
        (carry, state), (x, data) = carry_and_state, x_and_data
        (carry, y), drawn = run(state, carry, x, data)
        return (carry, None if cell is None else recurrent(cell, state, _summary(drawn, state))), y

    def shape_of_summary(carry: Any, x: Any, data: Any) -> jax.Array:
        with block():
            rng_key = jax.random.key(0)
            _, drawn = seed(lambda: run(jnp.zeros(handler.guide.hidden), carry, x, data), rng_key)()
        for one in drawn:
            plates.update(one.plates)
        return _summary(drawn, jnp.zeros(handler.guide.hidden))

    state = None
    if cell is not None:
        first = lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf))
        of_step = jax.tree.map(first, (xs, slices))
        state = jnp.zeros(jax.eval_shape(shape_of_summary, carry, *of_step).shape)
    handler.scans.running.append(plates)
    return step, (carry, state), (xs, slices), num_steps, reverse


def _summary(drawn: list[Drawn], state: jax.Array) -> jax.Array:
    """The sum of what one step has drawn."""
    num_dims = max([one.value.ndim for one in drawn] + [state.ndim])
    raised = [one.value.reshape((1,) * (num_dims - one.value.ndim) + one.value.shape) for one in drawn]
    return total([*raised, jnp.zeros((1,) * (num_dims - 1) + state.shape[-1:])])

