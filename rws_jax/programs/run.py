"""One run of one NumPyro program as one particle: draw, replay what was drawn, or simulate data too.

Drawing and replaying are two runs, never one. A draw is made with the parameters stopped *while the program runs*, so
that no site passes a gradient on to a later one; densities are then taken at the drawn values, which by now are
constants. XLA merges the arithmetic that the two runs have in common.
"""

from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions import Distribution
from numpyro.handlers import block, trace

from rws_jax.checks import dreams, matching
from rws_jax.checks.sites import check_proper
from rws_jax.core.dependence import dependence
from rws_jax.core.layers import MutableState, Params
from rws_jax.core.site_functions import at_site
from rws_jax.core.sites import Site, Trace, constant_sites, latent_sites, mutable_sites, param_sites
from rws_jax.core.supports import feasible
from rws_jax.core.trees import with_keys_cloned
from rws_jax.programs.drawing import draw_site, drawn_inside
from rws_jax.programs.handlers import given_values, mutable_state, parameters
from rws_jax.programs.program import Arguments, Index, Program
from rws_jax.programs.randomness import randomness
from rws_jax.programs.stand_in import stand_in


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
        return drawn_inside(site)

    return run_program(program, arguments, index, value_of)


def replay(
    program: Program,
    arguments: Arguments,
    index: Index,
    draws: Draws,
    *,
    proposal_dists: Callable[[Site], Distribution | None] | None = None,
    data: dict[str, Any] | None = None,
) -> Trace:
    """Run with latents and minibatch fixed to `draws`.

    A program that did not draw these values itself is given `proposal_dists`, the distribution that the value of each
    site was drawn from. It must not compute with a value outside of its support (a negative scale, say), lest NaN arise
    downstream of a particle whose weight is zero, so it gets some other point in its place. A guide goes on with its
    own draws, as when drawing.

    Sites named in `data` observe these values in place of their own, which they have as ``real``, as in `simulate`.
    """
    real: dict[str, Any] = {}

    def value_of(site: Site, steps: tuple) -> Any:
        if site["type"] == "plate":
            return draws.plates.get(site["name"])
        if site["type"] == "sample" and site["name"] in (data or {}):
            return observed(site, steps)
        if site["is_observed"]:
            return None
        return drawn_before(program.role, site, steps, draws.latents, proposal_dists)

    def observed(site: Site, steps: tuple) -> Any:
        if not steps:
            real[site["name"]] = site["value"]
        value = _at((data or {})[site["name"]], steps)
        matching.check_shape(program.role, site, jnp.shape(value))
        site["is_observed"] = True
        return value

    run = run_program(program, arguments, index, value_of, draws=False)
    for name in data or {}:
        if name in run:
            run[name]["real"] = real.get(name)
    return run


def simulate(
    program: Program, arguments: Arguments, index: Index, data_sites: tuple[str, ...]
) -> tuple[Trace, dict[str, jax.Array]]:
    """Run and draw latents and data together; also return the data, the values of the observed sites.

    What `numpyro.handlers.condition` gives and no latent bears upon is a constant, and no data.

    In the trace, sites have what they observe in reality as ``real``, where that is known as a whole.
    """
    real: dict[str, Any] = {}
    given: set[str] = set()  # constants
    has_drawn = False

    def value_of(site: Site, steps: tuple) -> Any:
        nonlocal has_drawn
        if site["type"] != "sample":
            return None
        if site["is_conditioned"] and not (has_drawn or steps) and site["name"] not in data_sites:
            given.add(site["name"])  # no latent can bear upon it
        if site["name"] in given:
            return None
        dreams.check_dreamable(site)
        if not site["is_observed"]:
            has_drawn, site["is_data"] = True, site["name"] in data_sites
            return drawn_inside(site)
        # handlers.uncondition would not reach into scan and cond, where later draws may depend on the data.
        if not steps:
            real[site["name"]] = site["value"]
        return stand_in(site, draw_site(site, numpyro.prng_key()), site["value"])

    run = run_program(program, arguments, index, value_of)
    more = constant_sites(run).keys() - set(data_sites) - given
    if more:  # known once the model has run
        given |= more
        run = run_program(program, arguments, index, value_of)
    for name, site in run.items():
        site["real"] = real.get(name)
        site["is_observed"] = site.get("is_observed", False) or site.get("is_data", False)
    drawn = [site["value"] for site in latent_sites(run).values()]
    for name, value in real.items():
        if name not in given and any(value is one for one in drawn):
            dreams.fail_observes_latents(name)
    data = {n: s["value"] for n, s in run.items() if s["type"] == "sample" and s["is_observed"] and n not in given}
    dreams.check_dream(run, data_sites, data)
    return run, data


def _at(value: Any, steps: tuple) -> Any:
    for step in steps:
        value = value[step]
    return value


_feasible = at_site(feasible)


def drawn_before(
    role: str,
    site: Site,
    steps: tuple,
    latents: dict[str, jax.Array],
    proposal_dists: Callable[[Site], Distribution | None] | None,
) -> Any:
    """The value of a latent site that is replayed, at these positions of scans; arguments are those of `replay`."""
    matching.check_drawn(role, site, latents)
    value = _at(latents[site["name"]], steps)
    matching.check_shape(role, site, jnp.shape(value))
    return value if proposal_dists is None else _feasible(site["fn"], value, proposal_dists(site))


def param_values(run: Trace) -> Params:
    """Values at the param sites that a run owns."""
    return {name: site["value"] for name, site in param_sites(run).items()}


def mutable_start(run: Trace) -> MutableState:
    """What the mutable sites of a run held before it."""
    return {name: site["start"] for name, site in mutable_sites(run).items()}


def mutable_end(run: Trace) -> MutableState:
    """What they hold after it."""
    return {name: with_keys_cloned(site["value"]) for name, site in mutable_sites(run).items()}


def constrained_values(run: Trace) -> Params:
    """What an `unconstrained` program itself saw at the param sites that it owns."""
    return {name: site["transform"](site["value"]) for name, site in param_sites(run).items()}


def run_program(
    program: Program, arguments: Arguments, index: Index, value_of: Callable[[Site, tuple], Any], *, draws: bool = True
) -> Trace:
    """Run as one particle, with sites set to ``value_of(site, steps)``; None lets a site draw or observe as it does.

    Where all latent sites are given values, so that none `draws`, no keys are computed for them.
    """
    run, conditioned = _run_with(program, arguments, index, value_of, draws=draws)
    for name in conditioned:
        run[name]["is_constant"] = False
    for name in _constants(program, arguments, index, run, conditioned) if conditioned else ():
        run[name]["is_constant"] = True
    return run


def _constants(
    program: Program, arguments: Arguments, index: Index, run: Trace, conditioned: list[str]
) -> Iterable[str]:
    """Sites that are conditioned, and whose log density does not depend on what is drawn.

    Where Python has to know what is drawn, these are the ones before the first latent.
    """
    local = index.local

    def log_densities(particle: Any, numbers: tuple) -> dict[str, jax.Array]:
        own = index._replace(particle=particle, local=local and local._replace(numbers=numbers))
        value_of = lambda site, steps: drawn_inside(site) if site["type"] == "sample" else None
        run, conditioned = _run_with(program, arguments, own, value_of)
        return {name: run[name]["fn"].log_prob(run[name]["value"]) for name in conditioned}

    try:
        with block():  # handlers further out would give values, or take note of traced ones
            numbers = tuple(map(jnp.asarray, local.numbers if local else ()))
            jaxpr, shapes = jax.make_jaxpr(log_densities, return_shape=True)(jnp.asarray(index.particle), numbers)
    except (TypeError, jax.errors.NonConcreteBooleanIndexError):
        is_latent = lambda site: site["type"] == "sample" and not site["is_observed"]
        return [name for name in takewhile(lambda name: not is_latent(run[name]), run) if name in conditioned]
    inputs: dict[str, set[int]] = jax.tree.structure(shapes).unflatten(dependence(jaxpr))
    return [name for name in inputs if not inputs[name]]


def _run_with(
    program: Program, arguments: Arguments, index: Index, value_of: Callable[[Site, tuple], Any], *, draws: bool = True
) -> tuple[Trace, list[str]]:
    run = randomness(program.seeded(draws=draws), program.role, index)
    run = parameters(run, program.role, program.params, program.held)
    run = mutable_state(run, program.role, program.mutable_state)
    given, (args, kwargs) = given_values(run, program.role, index, value_of), arguments.plain
    return trace(given).get_trace(*args, **kwargs), given.conditioned
