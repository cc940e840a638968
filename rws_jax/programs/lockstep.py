"""Model and guide, step by step: the bodies of both scans as one function of what a particle has at a point in time.

Whatever differs between particles, and lasts from step to step, is its `State`: the carries of both scans, and what the
bodies close over. It is found by dependence on the number of the particle, so that nothing is forgotten when particles
are exchanged for one another, and nothing is copied that they share.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from numpyro.handlers import block, seed, trace

from rws_jax.checks import lockstep as checks
from rws_jax.core.dependence import dependence, without_unused
from rws_jax.core.numpyro_internals import value_in_scan
from rws_jax.core.sites import Site, Trace, latent_sites, sample_sites
from rws_jax.programs.density import Units, dists_of, own_dists
from rws_jax.programs.drawing import constant_draw, drawn_before
from rws_jax.programs.handlers import in_body
from rws_jax.programs.program import Index
from rws_jax.programs.randomness import randomness
from rws_jax.programs.run import Draws
from rws_jax.programs.scans import Scan, scans


class Runs(NamedTuple):
    """One particle as a whole: traces of both programs, run at what it has drawn."""

    model: Trace
    guide: Trace


class Scored(NamedTuple):
    """Log densities in nats of what is drawn and observed at one point in time, scalars, and what is drawn."""

    log_p: jax.Array
    log_q: jax.Array
    latents: dict[str, jax.Array]


class State(NamedTuple):
    """What is carried from step to step."""

    own: list[jax.Array]  # what makes a particle, and moves when it is exchanged for another
    common: list[jax.Array]  # the same for all particles
    random: Any  # keys of both programs and the number of the particle, which stay where they are


class Lockstep(NamedTuple):
    """The scans of model and guide as one sequence of steps."""

    start: State
    before: Scored  # what is drawn and observed before the scans
    xs: Any  # what both programs scan over
    # A function of a state, a row of xs, and its position in the data.
    step: Callable[[State, Any, jax.Array], tuple[State, Scored]]
    length: int
    reverse: bool  # whether the last position is the first step

    @property
    def first(self) -> int:
        """The position of the first step."""
        return -1 if self.reverse else 0


class _Start(NamedTuple):
    """All that a particle has before the first step, as arrays."""

    carry: Any
    random: Any
    xs: tuple  # of model and guide
    closed_over: list[Any]
    before: Scored


def lockstep(draw: Callable[[Index], Draws], run: Callable[[Index, Draws], Runs], index: Index) -> Lockstep:
    """Prepare both programs to be run step by step, as one particle.

    Args:
      draw: draws from the guide as a particle.
      run: runs both programs at these draws, and checks them.
      index: which particle.
    """
    known: dict[str, Any] = {}  # what is no array

    def start_of(particle: jax.Array) -> _Start:
        own = index._replace(particle=particle)
        found, draws = scans(), draw(own)
        with found:
            runs = run(own, draws)
        model, guide = pair = _checked(found, runs)
        scale = Units.of(*runs).scale
        carry, xs = tuple(map(_like_last, pair, (model.carry, guide.carry))), (model.xs, guide.xs)
        # Keys are used on purpose in both kinds of runs.
        start = tuple(jax.random.clone(scan.rng_key) for scan in pair), particle
        with block():  # handlers further out would take note of what is traced
            x = jax.eval_shape(lambda xs: jax.tree.map(lambda leaf: leaf[0], xs), xs)
            step = _joint(pair, runs, scale, index)
            jaxpr, shapes = jax.make_jaxpr(step, return_shape=True)(carry, start, x, jnp.arange(1)[0])
        known.update(jaxpr=jaxpr.jaxpr, result=jax.tree.structure(shapes), steps=(model.length, model.reverse))
        return _Start(carry, start, xs, jaxpr.consts, _before(pair, runs, draws, scale))

    traced, shapes = jax.make_jaxpr(start_of, return_shape=True)(jnp.asarray(index.particle))
    as_start = jax.tree.structure(shapes).unflatten
    start: _Start = as_start(jaxpr_as_fun(without_unused(traced))(jnp.asarray(index.particle)))
    depends: _Start = as_start(map(bool, dependence(traced, also_missing=True)))
    for role, xs in zip(("model", "guide"), depends.xs, strict=True):
        if any(jax.tree.leaves(xs)):
            checks.fail_xs(role)
    state, step = _with_state(known["jaxpr"], known["result"], start, depends)
    return Lockstep(state, start.before, start.xs, step, *known["steps"])


def _checked(found: scans, runs: Runs) -> tuple[Scan, Scan]:
    """The scan of each program, once it is clear that they can be run in lockstep."""
    for role, run in zip(("model", "guide"), runs, strict=True):
        own = found.of(role)
        checks.check_one_scan(role, len(own), [kind for scan in own for kind, _ in scan.other])
        checks.check_sites(role, run, own[0].before, own[0].sites)
    (model,), (guide,) = found.of("model"), found.of("guide")
    checks.check_same_steps((model.length, guide.length), (model.reverse, guide.reverse))
    checks.check_steps_match(model.sites, guide.sites, runs.model)
    checks.check_one_unit(Units.of(*runs).shape)
    return model, guide


def _before(pair: tuple[Scan, Scan], runs: Runs, draws: Draws, scale: float) -> Scored:
    """What comes before the scans."""
    units, dists = Units((), scale), (dists_of(runs.guide), own_dists)
    log_densities = [
        sum(of_site for name, of_site in units.log_densities(run, draws.latents, source).items() if name in scan.before)
        for scan, run, source in zip(pair, runs, dists, strict=True)
    ]
    latents = {name: value for name, value in draws.latents.items() if name in pair[1].before}
    log_p, log_q = map(jnp.asarray, log_densities)
    return Scored(log_p, log_q, latents)


def _joint(pair: tuple[Scan, Scan], runs: Runs, scale: float, index: Index) -> Callable:
    """One step of both programs: the guide draws, and both are scored in the runs of their bodies that this takes."""
    units, (model, guide) = Units((), scale), pair

    def drawn(site: Site, steps: tuple) -> Any:
        return constant_draw(site) if site["type"] == "sample" else None

    def step(carry: tuple, random: tuple, x: tuple, position: jax.Array) -> tuple[tuple, tuple, Scored]:
        keys, particle = random
        keys, subkeys = zip(*map(jax.random.split, keys), strict=True)  # as NumPyro does
        of_model, of_guide = (partial(_run, index=index._replace(particle=particle), rng_key=key) for key in subkeys)
        guide_carry, guide_body = of_guide(guide, carry[1], x[1], position, drawn)
        latents = {name: site["value"] for name, site in latent_sites(guide_body).items()}
        dists = dists_of(guide_body)

        def replayed(site: Site, steps: tuple) -> Any:
            if site["type"] != "sample" or site["is_observed"]:
                return None
            return drawn_before("model", site, steps[1:], latents, dists)

        model_carry, model_body = of_model(model, carry[0], x[0], position, replayed)
        log_p = units.log_density(_scaled(model_body, runs.model), latents, dists)
        log_q = units.log_density(_scaled(guide_body, runs.guide), latents, own_dists)
        return (model_carry, guide_carry), (keys, particle), Scored(log_p, log_q, latents)

    return step


def _run(
    scan: Scan,
    carry: Any,
    x: Any,
    position: jax.Array,
    value_of: Callable[[Site, tuple], Any],
    *,
    index: Index,
    rng_key: jax.Array,
) -> tuple[Any, Trace]:
    """Run the body of a scan once: the next carry, and its trace."""
    at_step = lambda values, site: value_in_scan(values, position, scan.length, site)
    body = in_body(scan.body, scan.role, index, value_of, (position,), scan.inner, at_step)
    # NumPyro hides the sites of a body from handlers further out, but for the keys that it asks for.
    with randomness(None, scan.role, index), block(), trace() as run:
        seeded: Any = seed(body, rng_key)
        carry, _ = seeded(carry, x)
    return _like_last(scan, carry), run


def _like_last(scan: Scan, carry: Any) -> Any:
    """A carry in the types that all carries of a scan have; it may start from a Python number."""
    is_key = lambda x: jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    cast = lambda x, last: x if is_key(last) else lax.convert_element_type(x, jnp.result_type(last))
    return jax.tree.map(cast, carry, scan.last_carry)


def _scaled(body: Trace, run: Trace) -> Trace:
    """The sample sites of a body, scaled as they are from outside."""
    scale_of = lambda name, site: run[name]["scale"] if name in run else site["scale"]
    return {name: site | {"scale": scale_of(name, site)} for name, site in sample_sites(body).items()}


def _with_state(
    jaxpr: Jaxpr, result: Any, start: _Start, depends: _Start
) -> tuple[State, Callable[[State, Any, jax.Array], tuple[State, Scored]]]:
    """The step as a function of a state, which has what depends on the particle, and the state that it starts from."""
    carry = jax.tree.leaves(start.carry)
    own_carry, own_consts = jax.tree.leaves(depends.carry), depends.closed_over
    num_random = len(jax.tree.leaves(start.random))
    # A carry that starts from what all particles share may depend on the particle later.
    whole = lambda consts, *rest: jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*rest)
    rest = [var.aval for var in jaxpr.invars]
    sources = dependence(jax.make_jaxpr(whole)(start.closed_over, *rest), also_missing=True)
    while True:
        others = [False] * (len(rest) - len(carry) - num_random)
        inputs = [*own_consts, *own_carry, *[True] * num_random, *others]
        after = [own or any(inputs[i] for i in source) for own, source in zip(own_carry, sources, strict=False)]
        if after == own_carry:
            break
        own_carry = after

    def split(carry: list, consts: list) -> tuple[list, list]:
        leaves, is_own = [*carry, *consts], [*own_carry, *[True] * len(consts)]
        chosen = lambda own: [leaf for leaf, is_it in zip(leaves, is_own, strict=True) if is_it == own]
        return chosen(True), chosen(False)

    def step(state: State, x: Any, position: jax.Array) -> tuple[State, Scored]:
        own, common = iter(state.own), iter(state.common)
        carry = [next(own if is_own else common) for is_own in own_carry]
        moved = list(own)
        of_particle = iter(moved)
        consts = [
            next(of_particle) if is_own else const for const, is_own in zip(start.closed_over, own_consts, strict=True)
        ]
        flat = *carry, *jax.tree.leaves(state.random), *jax.tree.leaves(x), position
        carry, random, scored = result.unflatten(jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*flat))
        return State(*split(jax.tree.leaves(carry), moved), random), scored

    consts = [const for const, is_own in zip(start.closed_over, own_consts, strict=True) if is_own]
    return State(*split(carry, consts), start.random), step
