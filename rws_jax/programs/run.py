"""One run of one NumPyro program as one particle: draw, replay what was drawn, or simulate data too.

Drawing and replaying are two runs, never one. A draw is made with the parameters stopped *while the program runs*, so
that no site passes a gradient on to a later one; densities are then taken at the drawn values, which by now are
constants. XLA merges the arithmetic that the two runs have in common.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions import Distribution
from numpyro.handlers import trace

from rws_jax.checks import dreams, matching
from rws_jax.checks.sites import check_proper, check_supported
from rws_jax.core.layers import Params
from rws_jax.core.sites import Site, Trace, latent_sites
from rws_jax.core.supports import feasible
from rws_jax.programs.handlers import given_values, parameters, randomness
from rws_jax.programs.program import Arguments, Index, Program


class Draws(NamedTuple):
    """Values of latent sites, and the minibatch they were drawn for."""

    latents: dict[str, jax.Array]
    plates: dict[str, jax.Array]  # indices of the plates that are subsampled

    @classmethod
    def of(cls, run: Trace) -> "Draws":
        """What a run drew: its latent sites and its minibatch."""
        latents = {name: site["value"] for name, site in latent_sites(run).items()}
        plates = {name: site for name, site in run.items() if site["type"] == "plate"}
        return cls(latents, {name: s["value"] for name, s in plates.items() if len(s["value"]) < s["args"][0]})


def sample(program: Program, arguments: Arguments, index: Index, plates: dict[str, jax.Array] | None = None) -> Trace:
    """Run as one particle and draw every latent, for a minibatch of its own or that of `plates`."""

    def value_of(site: Site, steps: tuple) -> Any:
        if site["type"] == "plate":
            return (plates or {}).get(site["name"])
        check_proper(program.role, site)
        return None

    return _run(program, arguments, index, value_of)


def replay(
    program: Program,
    arguments: Arguments,
    index: Index,
    draws: Draws,
    *,
    proposal_dists: Callable[[Site], Distribution | None] | None = None,
) -> Trace:
    """Run with latents and minibatch fixed to `draws`.

    A program that did not draw these values itself is given `proposal_dists`, the distribution that the value of each
    site was drawn from. It must not compute with a value outside of its support (a negative scale, say), lest NaN arise
    downstream of a particle whose weight is zero, so it gets some other point in its place. A guide goes on with its
    own draws, as when drawing.
    """

    def value_of(site: Site, steps: tuple) -> Any:
        if site["type"] == "plate":
            return draws.plates.get(site["name"])
        if site["is_observed"]:
            return None
        matching.check_drawn(program.role, site, draws.latents)
        value = draws.latents[site["name"]]
        for step in steps:
            value = value[step]
        matching.check_shape(program.role, site, jnp.shape(value))
        return value if proposal_dists is None else feasible(site["fn"], value, proposal_dists(site))

    return _run(program, arguments, index, value_of)


def simulate(
    program: Program, arguments: Arguments, index: Index, data_sites: tuple[str, ...]
) -> tuple[Trace, dict[str, jax.Array]]:
    """Run and draw latents and data together; also return the data, the values of the observed sites."""

    def value_of(site: Site, steps: tuple) -> Any:
        if site["type"] != "sample":
            return None
        dreams.check_dreamable(site)
        if not site["is_observed"]:
            site["is_data"] = site["name"] in data_sites
            return None
        # handlers.uncondition would not reach into scan and cond, where later draws may depend on the data.
        value = site["fn"](rng_key=numpyro.prng_key(), sample_shape=site["kwargs"]["sample_shape"])
        real = jnp.asarray(site["value"]).dtype
        return value.astype(real) if jnp.issubdtype(real, jnp.floating) else value  # counts come as floats if data do

    run = _run(program, arguments, index, value_of)
    for site in run.values():
        site["is_observed"] = site.get("is_observed", False) or site.get("is_data", False)
    dreams.check_dream(run, data_sites)
    return run, {name: s["value"] for name, s in run.items() if s["type"] == "sample" and s["is_observed"]}


def param_values(run: Trace) -> Params:
    """Values at the param sites of a run."""
    return {name: site["value"] for name, site in run.items() if site["type"] == "param"}


def constrained_values(run: Trace) -> Params:
    """What an `unconstrained` program itself saw at its param sites."""
    return {name: site["transform"](site["value"]) for name, site in run.items() if site["type"] == "param"}


def _run(program: Program, arguments: Arguments, index: Index, value_of: Callable[[Site, tuple], Any]) -> Trace:
    run = randomness(program.seeded, program.role, index)
    if program.params is not None:
        run = parameters(run, program.role, program.params)
    args, kwargs = arguments.plain
    sites = trace(given_values(run, program.role, value_of)).get_trace(*args, **kwargs)
    check_supported(program.role, sites)
    return sites
