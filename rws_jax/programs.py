"""One run of one NumPyro program: draw, score at fixed values, or dream. The only file that defines handlers.

Drawing and scoring are two runs, never one. A draw is made with the parameters stopped *while the program runs*, so
that no site passes a gradient on to a later one; densities are then taken at the drawn values, which by now are
constants. XLA merges the arithmetic that the two runs have in common.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from numpyro.contrib.control_flow.cond import _subs_wrapper as value_in_cond
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.contrib.control_flow.scan import _subs_wrapper as value_in_scan
from numpyro.distributions import biject_to, constraints
from numpyro.handlers import condition, seed, substitute, trace
from numpyro.primitives import Messenger

from rws_jax import dreams, matching, sites
from rws_jax.density import feasible
from rws_jax.sites import Site, Trace

Program = Callable[..., Any]
Params = dict[str, Any]


class Draws(NamedTuple):
    """Values of latent sites, and the minibatch they were drawn for."""

    latents: dict[str, jax.Array]
    plates: dict[str, jax.Array]  # indices of the plates that are subsampled


def sampled(program: Program, role: str, params: Params | None, index: Any, args: tuple, kwargs: dict) -> Trace:
    """Run as particle `index`, drawing every latent. With `params=None` param sites take their initial values."""
    return _run(program, role, params, index, lambda site, steps: None, args, kwargs)


def scored(
    program: Program,
    role: str,
    params: Params | None,
    index: Any,
    draws: Draws,
    args: tuple,
    kwargs: dict,
    *,
    drawn_in: Trace | None = None,
) -> Trace:
    """Run with latents and minibatch fixed to `draws`.

    A model is given the guide's run as `drawn_in`. It must not compute with a value outside of its support (a negative
    scale, say), lest NaN arise downstream of a particle whose weight is zero, so it gets some other point in its place.
    A guide goes on with its own draws, as it did when drawing.
    """

    def fixed(site: Site, steps: tuple) -> Any:
        if site["type"] == "plate":
            return draws.plates.get(site["name"])
        if site["is_observed"]:
            return None
        matching.check_drawn(role, site, draws.latents)
        value = draws.latents[site["name"]]
        for step in steps:
            value = value[step]
        matching.check_shape(role, site, jnp.shape(value))
        return value if drawn_in is None else feasible(site["fn"], value, drawn_in[site["name"]]["fn"])

    return _run(program, role, params, index, fixed, args, kwargs)


def dreamt(
    model: Program, params: Params | None, index: Any, args: tuple, kwargs: dict, observed_sites: tuple[str, ...]
) -> tuple[Trace, dict[str, jax.Array]]:
    """Run drawing latents and data together; also return the data, the values of the observed sites."""

    def redraw(site: Site, steps: tuple) -> Any:
        if site["type"] != "sample":
            return None
        dreams.check_dreamable(site)
        if not site["is_observed"]:
            return None
        # handlers.uncondition would not reach into scan and cond, where later draws may depend on the data.
        value = site["fn"](rng_key=numpyro.prng_key(), sample_shape=site["kwargs"]["sample_shape"])
        real = jnp.asarray(site["value"]).dtype
        return value.astype(real) if jnp.issubdtype(real, jnp.floating) else value  # counts come as floats if data do

    run = _run(model, "model", params, index, redraw, args, kwargs)
    for name in observed_sites:
        if name in run:
            run[name]["is_observed"] = True
    dreams.check_dream(run, observed_sites)
    return run, {name: s["value"] for name, s in run.items() if s["type"] == "sample" and s["is_observed"]}


def draws_of(run: Trace) -> Draws:
    """What a run drew: its latent sites and its minibatch."""
    latents = {name: site["value"] for name, site in sites.latent_sites(run).items()}
    plates = {name: site for name, site in run.items() if site["type"] == "plate"}
    return Draws(latents, {name: s["value"] for name, s in plates.items() if len(s["value"]) < s["args"][0]})


def again(program: Program) -> Program:
    """The same seeded program, to be run once more with the same randomness (and JAX told that this is meant)."""
    if not isinstance(program, seed) or program.rng_key is None:
        return program
    return seed(program.fn, jax.random.clone(program.rng_key), program.hide_types)


def param_values(run: Trace) -> Params:
    """Values at the param sites of a run."""
    return {name: site["value"] for name, site in run.items() if site["type"] == "param"}


def constrained_values(run: Trace) -> Params:
    """What an `unconstrained` program itself saw at its param sites."""
    return {name: site["transform"](site["value"]) for name, site in run.items() if site["type"] == "param"}


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


class _parameters(Messenger):
    """Gives every param site its value from `values`; a site without one is an error."""

    def __init__(self, fn: Program, role: str, values: Params) -> None:
        self.role, self.values = role, values
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        if msg["type"] == "param" and msg["value"] is None:
            sites.check_param(self.role, msg["name"], self.values)
            msg["value"] = self.values[msg["name"]]


class _randomness(Messenger):
    """Gives a seeded program the randomness of one particle: every key is folded with the particle's index.

    Plates keep their key, so that all particles see the same minibatch.
    """

    def __init__(self, fn: Program, role: str, index: Any) -> None:
        self.role, self.index = role, index
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        if msg["type"] not in ("sample", "plate", "prng_key", "control_flow") or msg["value"] is not None:
            return
        rng_key = msg["kwargs"]["rng_key"]
        if rng_key is None:
            sites.fail_unseeded(self.role, msg)
        if msg["type"] != "plate":
            msg["kwargs"]["rng_key"] = jax.random.fold_in(rng_key, self.index)


class _values(Messenger):
    """Sets sites to ``fixed(site, steps)``, also in the bodies of scan and cond.

    `steps` are the positions, in the data, of the enclosing scans. NumPyro's own `substitute` counts the steps of a
    reversed scan from the wrong end, and does not reach a cond within a scan.
    """

    def __init__(self, fn: Program, role: str, fixed: Callable[[Site, tuple], Any], steps: tuple | None = None) -> None:
        self.role, self.fixed, self.steps = role, fixed, steps  # steps is None outside of control flow
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        if msg["type"] == "control_flow":
            self._enter(msg)
        if self.steps is not None:
            sites.check_in_control_flow(self.role, msg)
        if msg["type"] in ("sample", "plate") and not msg.get("_control_flow_done"):
            value = self.fixed(msg, self.steps or ())
            if value is None:
                return
            if self.steps is not None and msg["value"] is None:
                numpyro.prng_key()  # the key that a draw would have taken: what follows must see the same randomness
            msg["value"] = value

    def _enter(self, msg: Site) -> None:
        """Put this handler into the bodies of a scan or cond, and condition and substitute of the program before it."""
        stack, kinds = msg["kwargs"]["substitute_stack"], ("condition", "substitute")
        inner = [entry for entry in stack if entry[0] in kinds]
        msg["kwargs"]["substitute_stack"] = [entry for entry in stack if entry[0] not in kinds]

        def inside(body: Program, steps: tuple, at_site: Callable) -> Program:
            for kind, values in inner:
                value_of = partial(at_site, values)
                body = (
                    condition(body, condition_fn=value_of) if kind == "condition" else substitute(body, None, value_of)
                )
            return _values(body, self.role, self.fixed, steps)

        steps = self.steps or ()
        if msg["fn"] is cond_wrapper:
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


def _run(
    program: Program,
    role: str,
    params: Params | None,
    index: Any,
    fixed: Callable[[Site, tuple], Any],
    args: tuple,
    kwargs: dict,
) -> Trace:
    program = _randomness(program, role, index)
    if params is not None:
        program = _parameters(program, role, params)
    run = trace(_values(program, role, fixed)).get_trace(*args, **kwargs)
    sites.check_supported(role, run)
    return run
