"""The handlers that a run of a program is made of: its parameters, one particle's randomness, and given values."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions import biject_to, constraints
from numpyro.handlers import condition, substitute

from rws_jax.checks.mutable_state import check_mutable, fail_changed_in_control_flow
from rws_jax.checks.params import check_constrained, check_param
from rws_jax.checks.shapes import check_shapes, check_within_plates
from rws_jax.checks.sites import check_array, check_in_control_flow, check_minibatches, fail_unseeded
from rws_jax.core.keys import plain
from rws_jax.core.layers import MutableState, Params, ProgramFn
from rws_jax.core.numpyro_internals import (
    SUBSTITUTE_STACK,
    Messenger,
    active_plates,
    comes_out_of_control_flow,
    is_cond,
    is_conditioned,
    value_in_cond,
    value_in_scan,
)
from rws_jax.core.sites import Site, with_batch_shape
from rws_jax.core.trees import with_keys_cloned
from rws_jax.programs.program import Index


class unconstrained(Messenger):
    """Makes a program one of unconstrained parameters.

    Handlers around it read and write param sites on the real line; the program inside sees them mapped to their
    `constraint`.
    """

    def process_message(self, msg: Site) -> None:
        if msg["type"] != "param":
            return
        if msg["value"] is not None:  # a handler inside, such as substitute, has fixed it: no parameter any more
            msg["stop"] = True
        else:
            transform = biject_to(msg["kwargs"].get("constraint", constraints.real))
            initial = msg["fn"]
            msg["fn"] = lambda *args, **kwargs: transform.inv(initial(*args, **kwargs))
            msg["transform"] = transform

    def postprocess_message(self, msg: Site) -> None:
        if "transform" in msg:
            msg["value"] = msg["transform"](msg["value"])


class parameters(Messenger):
    """Gives every param site its value from `values`, or from `held` if it is the model's; one without is an error.

    Where there are no values, sites take their initial ones.
    """

    def __init__(self, fn: ProgramFn, role: str, values: Params | None, held: Params | None) -> None:
        own, of_model = (None if params is None else dict(params) for params in (values, held))
        self.role, self.values, self.held = role, own, of_model
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        if msg["type"] != "param" or msg["value"] is not None:
            return
        is_held = bool(msg.get("is_held"))
        values = self.held if is_held else self.values
        if values is None:
            return
        check_param(self.role, msg["name"], values, is_held=is_held)
        msg["value"] = values[msg["name"]]
        if "transform" not in msg:  # else it is unconstrained
            check_constrained("model" if is_held else self.role, msg)


class mutable_state(Messenger):
    """Gives every mutable site its state from `values` or, if there are none, leaves it its initial one.

    A program may change what it is given, so each run has a copy. A state that a handler inside has fixed stays fixed.
    """

    def __init__(self, fn: ProgramFn, role: str, values: MutableState | None) -> None:
        self.role, self.values = role, values
        self.given: dict[str, tuple] = {}  # what a program may change: the copy, or what it has asked with
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        if msg["type"] == "control_flow":
            bodies = (1, 2) if is_cond(msg) else (0,)
            msg["args"] = tuple(self._checked(x) if n in bodies else x for n, x in enumerate(msg["args"]))
        if msg["type"] != "mutable":
            return
        if msg["value"] is not msg["args"][0]:  # by numpyro.handlers.substitute, say
            msg["value"], msg["stop"] = with_keys_cloned(msg["value"]), True
        else:
            if self.values is not None:
                check_mutable(self.role, msg["name"], self.values)
                msg["value"] = self.values[msg["name"]]
            msg["value"] = with_keys_cloned(msg["value"])
            msg["start"] = with_keys_cloned(msg["value"])
        self.given[msg["name"]] = msg["args"][0], msg["value"]

    def _checked(self, body: Callable) -> Callable:
        """What is left behind in the body of a scan or cond is not known outside of it."""

        def run(*args: Any) -> Any:
            before = {name: jax.tree.leaves(given) for name, given in self.given.items()}
            result = body(*args)
            for name, leaves in before.items():
                after = jax.tree.leaves(self.given[name])
                if len(after) != len(leaves) or any(new is not old for new, old in zip(after, leaves, strict=True)):
                    fail_changed_in_control_flow(self.role, name)
            return result

        return run


class randomness(Messenger):
    """Gives a seeded program the randomness of one particle: every key is folded with the particle's index.

    Plates keep their key, so that all particles see the same minibatch. A program of one datum among many has its keys
    folded with the datum's index before, all of them. Sites in inner plates fold the number of a local particle, if
    there is one: also in the bodies of scan and cond, by `given_values`.
    """

    def __init__(self, fn: ProgramFn | None, role: str, index: Index) -> None:
        self.role, self.index = role, index
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        if msg["type"] not in ("sample", "plate", "prng_key", "control_flow") or msg["value"] is not None:
            return
        rng_key = msg["kwargs"]["rng_key"]
        if rng_key is None:
            where = f"{msg['type']} site {msg['name']!r}" if "name" in msg else f"a {msg['type']} statement"
            fail_unseeded(self.role, where)
        if self.index.datum is not None:
            rng_key = jax.random.fold_in(rng_key, self.index.datum)
        in_body = msg["type"] == "control_flow" or msg.get("is_of_site")  # whose sites fold numbers of their own
        if msg["type"] != "plate" and not (in_body and self.index.local is not None):
            rng_key = jax.random.fold_in(rng_key, self.index.number_in(msg.get("cond_indep_stack", ())))
        msg["kwargs"]["rng_key"] = rng_key if msg["type"] == "control_flow" else plain(rng_key)  # scans split theirs


class given_values(Messenger):
    """Sets sites to ``value_of(site, steps)``, also in the bodies of scan and cond; None leaves a site as it is.

    `steps` are the positions, in the data, of the enclosing scans. The role is written into the message, for handlers
    further out. NumPyro's own `substitute` counts the steps of a reversed scan from the wrong end, and does not reach a
    cond within a scan.
    """

    def __init__(
        self, fn: ProgramFn, role: str, index: Index, value_of: Callable[[Site, tuple], Any], steps: tuple | None = None
    ) -> None:
        self.role, self.index, self.value_of = role, index, value_of
        self.steps = steps  # None outside of control flow
        self.minibatches: list[Any] = []  # indices of all plates whose records are seen
        self.conditioned: list[str] = []  # sites whose values are given by `numpyro.handlers.condition`
        self.takes_key = False  # whether a key is asked for on behalf of a site, which handlers further out see
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        if self.takes_key:
            msg["is_of_site"] = True
        if msg["type"] == "control_flow":
            self._enter(msg)
        if self.steps is not None:
            check_in_control_flow(self.role, msg)
        msg["role"] = self.role
        if msg["type"] == "sample":
            msg["fn"] = with_batch_shape(msg["fn"])
        if msg["type"] not in ("sample", "plate") or comes_out_of_control_flow(msg):
            return
        if msg["type"] == "sample":
            check_array(self.role, msg)
            plates = active_plates()
            check_minibatches(self.role, msg, plates, self.minibatches)
            msg["plate_sizes"] = {plate.dim: plate.size for plate in plates}
            msg["is_conditioned"] = msg["is_observed"] and is_conditioned(msg)
            if msg["is_conditioned"]:
                self.conditioned.append(msg["name"])
            if self.steps is not None and msg["value"] is None:
                # The key that a draw takes, also if the value is given: what follows must see the same randomness.
                self.takes_key = True
                rng_key: Any = numpyro.prng_key()
                self.takes_key = False
                if self.index.local is not None:
                    rng_key = jax.random.fold_in(rng_key, self.index.number_in(msg["cond_indep_stack"]))
                msg["kwargs"]["rng_key"] = rng_key
        value = self.value_of(msg, self.steps or ())
        if value is not None:
            msg["value"] = value

    def postprocess_message(self, msg: Site) -> None:
        if msg["type"] == "plate":
            self.minibatches.append(msg["value"])
        elif msg["type"] == "sample" and not comes_out_of_control_flow(msg):
            check_shapes(self.role, msg)
            if msg["is_observed"] or self.steps is not None:
                check_within_plates(self.role, msg)

    def _enter(self, msg: Site) -> None:
        """Put this handler into the bodies of a scan or cond, and condition and substitute of the program before it."""
        stack, kinds = msg["kwargs"][SUBSTITUTE_STACK], ("condition", "substitute")
        inner = [entry for entry in stack if entry[0] in kinds]
        msg["kwargs"][SUBSTITUTE_STACK] = [entry for entry in stack if entry[0] not in kinds]
        msg["as_written"] = msg["args"], inner  # for handlers further out that run the bodies themselves

        def inside(body: ProgramFn, steps: tuple, at_site: Callable) -> ProgramFn:
            handler = in_body(body, self.role, self.index, self.value_of, steps, inner, at_site)
            handler.conditioned = self.conditioned
            return handler

        steps = self.steps or ()
        if is_cond(msg):
            predicate, true_body, false_body, operand = msg["args"]
            bodies = (inside(body, steps, value_in_cond) for body in (true_body, false_body))
            msg["args"] = (predicate, *bodies, operand)
            return
        body, carry, xs, length, reverse = msg["args"]
        length = len(jax.tree.leaves(xs)[0]) if length is None else length

        def counted_body(carry: Any, x_and_step: tuple) -> Any:
            x, step = x_and_step
            at_step = lambda values, site: value_in_scan(values, step, length, site)
            return inside(body, (*steps, step), at_step)(carry, x)

        msg["args"] = (counted_body, carry, (xs, jnp.arange(length)), length, reverse)


def in_body(
    body: ProgramFn,
    role: str,
    index: Index,
    value_of: Callable[[Site, tuple], Any],
    steps: tuple,
    inner: Iterable[tuple[str, Any]],
    at_site: Callable,
) -> given_values:
    """The body of a scan or cond with its sites set to ``value_of(site, steps)``.

    Args:
      body: as the program has it.
      role: of the program.
      index: which particle.
      value_of: as in `given_values`.
      steps: positions, in the data, of the scans that the body is in.
      inner: what `condition` and `substitute` within the program give: kind and values of each.
      at_site: takes these values to the one of a site.
    """
    for kind, values in inner:
        given = partial(at_site, values)
        body = condition(body, condition_fn=given) if kind == "condition" else substitute(body, None, given)
    return given_values(body, role, index, value_of, steps)
