"""One run of one NumPyro program: draw, score at fixed values, or dream.

Drawing and scoring are two runs, never one. A draw is made with the parameters stopped *while the program runs*, so
that no site passes a gradient on to a later one; densities are then taken at the drawn values, which by now are
constants. XLA merges the arithmetic that the two runs have in common.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from jax import lax
from jax.core import Tracer
from numpyro.distributions import Distribution
from numpyro.handlers import seed, trace

from rws_jax import dreams, matching, paths, sites
from rws_jax.handlers import Params, Program, fixed_values, parameters, randomness
from rws_jax.options import check_defensive_share
from rws_jax.paths import Walk
from rws_jax.sites import Site, Trace
from rws_jax.supports import feasible
from rws_jax.validation import check_no_collision, check_params, check_passed_on, layers


class Call(NamedTuple):
    """A seeded program with its parameters and arguments. The role says in messages which program it is."""

    program: Program
    role: str
    params: Params | None  # None: param sites take their initial values
    args: tuple
    kwargs: dict
    datum: Any = None  # its index, if the program is of one datum among many
    walk: Walk | None = None  # along which path it runs, if it branches in Python and is compiled

    def stopped(self) -> "Call":
        """The same with its parameters held constant."""
        return self._replace(params=lax.stop_gradient(self.params))  # no gradient for whoever owns them

    def rng_key(self) -> jax.Array:
        """The key that the program is seeded with."""
        for layer in layers(self.program):
            if isinstance(layer, seed) and layer.rng_key is not None:
                rng_key = jax.random.clone(layer.rng_key)
                return rng_key if self.datum is None else jax.random.fold_in(rng_key, self.datum)
        sites.fail_unseeded(self.role, "the program")


def calls(
    loss: Callable, theta: Params, phi: Params, model: Program, guide: Program, args: tuple, kwargs: dict
) -> tuple[Call, Call]:
    """Model and guide as a loss is given them."""
    check_params(theta, "theta")
    check_params(phi, "phi")
    for program, role in ((model, "model"), (guide, "guide")):
        check_no_collision(loss, program, role, len(args))
    check_passed_on(loss, (model, guide), kwargs)
    return Call(model, "model", theta, args, kwargs), Call(guide, "guide", phi, args, kwargs)


def defensive_call(defensive: float, defensive_guide: Program | None, args: tuple, kwargs: dict) -> Call | None:
    """A defensive guide, if there is one; it has no parameters."""
    check_defensive_share(defensive, defensive_guide)
    return None if defensive_guide is None else Call(defensive_guide, "defensive guide", None, args, kwargs)


class Draws(NamedTuple):
    """Values of latent sites, and the minibatch they were drawn for."""

    latents: dict[str, jax.Array]
    plates: dict[str, jax.Array]  # indices of the plates that are subsampled


def sampled(call: Call, index: Any, plates: dict[str, jax.Array] | None = None) -> Trace:
    """Run as particle `index`, drawing every latent, for a minibatch of its own or that of `plates`."""

    def fixed(site: Site, steps: tuple) -> Any:
        if site["type"] == "plate":
            return (plates or {}).get(site["name"])
        sites.check_proper(call.role, site)
        return None

    return _run(call, index, fixed)


def scored(
    call: Call, index: Any, draws: Draws, *, drawn_from: Callable[[Site], Distribution | None] | None = None
) -> Trace:
    """Run with latents and minibatch fixed to `draws`.

    A program that did not draw these values itself is given `drawn_from`, the distribution that did, by site. It must
    not compute with a value outside of its support (a negative scale, say), lest NaN arise downstream of a particle
    whose weight is zero, so it gets some other point in its place. A guide goes on with its own draws, as when drawing.
    """

    def fixed(site: Site, steps: tuple) -> Any:
        if site["type"] == "plate":
            return draws.plates.get(site["name"])
        if site["is_observed"]:
            return None
        matching.check_drawn(call.role, site, draws.latents)
        value = draws.latents[site["name"]]
        for step in steps:
            value = value[step]
        matching.check_shape(call.role, site, jnp.shape(value))
        return value if drawn_from is None else feasible(site["fn"], value, drawn_from(site))

    return _run(call, index, fixed)


def dreamt(call: Call, index: Any, observed_sites: tuple[str, ...]) -> tuple[Trace, dict[str, jax.Array]]:
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

    run = _run(call, index, redraw)
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


def param_values(run: Trace) -> Params:
    """Values at the param sites of a run."""
    return {name: site["value"] for name, site in run.items() if site["type"] == "param"}


def constrained_values(run: Trace) -> Params:
    """What an `unconstrained` program itself saw at its param sites."""
    return {name: site["transform"](site["value"]) for name, site in run.items() if site["type"] == "param"}


def _run(call: Call, index: Any, fixed: Callable[[Site, tuple], Any]) -> Trace:
    program = call.program
    if isinstance(program, seed) and program.rng_key is not None:
        # The same randomness is used in several runs: JAX is told that this is meant.
        program = seed(program.fn, jax.random.clone(program.rng_key), program.hide_types)

    def steered(site: Site, steps: tuple) -> Any:
        value = fixed(site, steps)
        if not paths.steers(site, call.walk):
            if call.walk is not None:
                call.walk.pass_by(site)
            return value
        known = not isinstance(site["kwargs"]["rng_key"] if value is None else value, Tracer)
        if call.walk is None and known:
            return value
        paths.check_steering(call.role, site)
        if call.walk is None:
            paths.fail_traced(f"branching site {site['name']!r} of the {call.role}")
        if value is None:
            return call.walk.choose(site["name"], lambda: site["fn"](**site["kwargs"]))
        if known:
            return value
        planned = call.walk.value(site["name"])
        if planned is None:
            raise paths.Unplanned(site["name"])
        return planned  # a constant, though the support that it was to be kept in is none

    program = randomness(program, call.role, index, call.datum)
    if call.params is not None:
        program = parameters(program, call.role, call.params)
    run = trace(fixed_values(program, call.role, steered)).get_trace(*call.args, **call.kwargs)
    sites.check_supported(call.role, run)
    if call.walk is not None:
        call.walk.note(call.role, run)
    return run
