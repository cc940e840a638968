"""One run of a model with latents fixed to posterior samples: data are drawn anew, or stay as they are to be scored."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import block

from rws_jax.checks.predictive import check_drawable, check_plate, fail_shape
from rws_jax.core.dependence import dependence
from rws_jax.core.sites import Site, Trace, base_distribution, constant_sites, site_shape
from rws_jax.programs.drawing import draw_site, drawn_inside
from rws_jax.programs.program import Arguments, Index, Program
from rws_jax.programs.run import run_program


class Kept(NamedTuple):
    """Posterior samples, by latent site, that a model is run at."""

    values: dict[str, jax.Array]
    present: dict[str, jax.Array]  # which of the numbers are there; no entry where all are


def predict(program: Program, arguments: Arguments, index: Index, kept: Kept, *, draws_data: bool) -> Trace:
    """Run with latents fixed to one posterior sample; latents that it does not have are drawn.

    What is observed is drawn anew if `draws_data`, and stays observed in the trace. What `numpyro.handlers.condition`
    gives and no latent bears upon is a constant, and stays as it is; so does `numpyro.factor`.

    In the trace, plates of which a run draws a minibatch have ``is_random``, and ``is_used`` if the indices matter.
    """
    run = _run(program, arguments, index, kept, draws_data, {})
    plates = {name: site for name, site in run.items() if site["type"] == "plate"}
    random = {name: site["value"] for name, site in plates.items() if site["is_random"]}
    used = _used(program, arguments, index, kept, random) if random else set()
    for name, site in plates.items():
        site["is_used"] = name in used
    return run


def is_factor(site: Site) -> bool:
    """Whether a site is a `numpyro.factor`, which has a density and nothing to be drawn."""
    return isinstance(base_distribution(site["fn"]), dist.Unit)


def _run(
    program: Program,
    arguments: Arguments,
    index: Index,
    kept: Kept,
    draws_data: bool,
    minibatches: dict[str, jax.Array],
) -> Trace:
    given: set[str] = set()  # constants
    has_drawn = False

    def value_of(site: Site, steps: tuple) -> Any:
        nonlocal has_drawn
        if site["type"] == "plate":
            check_plate(site)
            site["is_random"] = site["value"] is None
            return minibatches.get(site["name"])
        if site["is_observed"]:
            if site["is_conditioned"] and not (has_drawn or steps):
                given.add(site["name"])  # no latent can bear upon it
            if not draws_data or site["name"] in given or is_factor(site):
                return None
            check_drawable(site)
            return draw_site(site, numpyro.prng_key())
        has_drawn = True
        if site["name"] in kept.values:
            return _set(site, _kept_value(site, steps, kept, draws_data))
        check_drawable(site)
        return drawn_inside(site)

    run = run_program(program, arguments, index, value_of)
    more = constant_sites(run).keys() - given
    if draws_data and more:  # known once the model has run
        given |= more
        run = run_program(program, arguments, index, value_of)
    return run


def _used(
    program: Program,
    arguments: Arguments,
    index: Index,
    kept: Kept,
    minibatches: dict[str, jax.Array],
) -> set[str]:
    """Plates whose indices bear upon a value, real data among them, or a density; all where Python has to know them."""

    def outcome(minibatches: dict[str, jax.Array]) -> Any:
        run = _run(program, arguments, index, kept, False, minibatches)
        values = {name: site["value"] for name, site in run.items() if site["type"] in ("sample", "deterministic")}
        return values, {n: run[n]["fn"].log_prob(value) for n, value in values.items() if run[n]["type"] == "sample"}

    try:
        with block():  # handlers further out would give values, or take note of traced ones
            jaxpr = jax.make_jaxpr(outcome)(minibatches)
    except (TypeError, IndexError):
        return set(minibatches)
    used = set[int]().union(*dependence(jaxpr))
    return {name for number, name in enumerate(sorted(minibatches)) if number in used}


def _kept_value(site: Site, steps: tuple, kept: Kept, draws_data: bool) -> jax.Array:
    name, shape = site["name"], site_shape(site)
    value, there = kept.values[name][steps], kept.present.get(name)
    if there is None:
        if value.shape != shape:
            fail_shape(site, value.shape, shape, draws_data)
        return value
    # Particles of other paths may have larger values, to whose shape this one was filled up, or none at all.
    if value.ndim != len(shape) or any(wide < size for wide, size in zip(value.shape, shape, strict=True)):
        fail_shape(site, value.shape, shape, draws_data)
    own = tuple(slice(size) for size in shape)
    return jnp.where(there[steps][own], value[own], draw_site(site, site["kwargs"]["rng_key"]))


def _set(site: Site, value: jax.Array) -> jax.Array | None:
    """Hand a value to a site; what Python branches on is drawn, of a distribution that draws nothing else.

    The handler of branching sites takes note of what is drawn, and of nothing else.
    """
    if not site["infer"].get("branching"):
        return value
    site["fn"] = dist.Delta(value, event_dim=site["fn"].event_dim)
    return None
