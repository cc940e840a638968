r"""Defensive proposals: particles from a mixture of the guide and a program that never stops proposing.

.. math:: r(z \mid x) = (1 - \delta) \, q_\phi(z \mid x) + \delta \, u(z)

A guide that has come to leave out a part of the posterior draws no particle there, and so never learns of it again
(branch pruning; Le et al. 2019, arXiv 1805.10469). Particles of u reach it. Weights are p / r with r at the point
drawn: they are bounded where p / u is, and the bound stays a bound. Here u is a program without parameters or, if there
is none, the model's prior.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from rws_jax.checks import matching, sites
from rws_jax.core.sites import Trace, latent_sites
from rws_jax.programs.density import Units, dists_of
from rws_jax.programs.program import Index, Programs
from rws_jax.programs.run import Draws, replay, sample

# The choice between guide and u: a number for its key that no particle has, and its name as a site.
_CHOICE_KEY = 0xFFFFFFFF
CHOICE = "(defensive)"


def draw(programs: Programs, index: Index, delta: float) -> Draws:
    """Draw from r: unit by unit where all particles have the same sites, else from one of the two programs as a whole.

    Half of a particle may not go with half of another one where sites differ. Each unit's draw comes from r all the
    same.
    """
    rng_key = jax.random.fold_in(jax.random.fold_in(programs.guide.key_of(index), _CHOICE_KEY), index.particle)
    return (_draw_whole if index.alone else _draw_each_unit)(programs, index, delta, rng_key)


def run_u(programs: Programs, index: Index, draws: Draws, guide_run: Trace, model_run: Trace) -> Trace:
    """Run u at given draws, to be scored; the model, if it is u, has been run."""
    if programs.defensive_guide is None:
        sites.check_prior(model_run, guide_run)
        return model_run
    run = replay(programs.defensive_guide, programs.arguments, index, draws, proposal_dists=dists_of(guide_run))
    matching.check_defensive_match(guide_run, run)
    return run


def _draw_each_unit(programs: Programs, index: Index, delta: float, rng_key: jax.Array) -> Draws:
    guide_run = sample(programs.guide, programs.arguments, index)
    sites.check_guide(guide_run)
    draws = Draws.of(guide_run)
    run = _sample_u(programs, index, draws.plates)
    if programs.defensive_guide is None:
        model_run = run
        sites.check_prior(run, guide_run)
        matching.check_match(run, guide_run)
    else:
        dists = dists_of(guide_run)
        model_run = replay(programs.model, programs.arguments, index, draws, proposal_dists=dists)  # for its plates
        matching.check_defensive_match(guide_run, run)
    units = Units.of(model_run, guide_run, run)
    chosen = jax.random.bernoulli(rng_key, delta, units.batch_shape)
    choose = lambda name, site: jnp.where(units.beside(chosen, site), run[name]["value"], site["value"])
    return Draws({name: choose(name, site) for name, site in latent_sites(guide_run).items()}, draws.plates)


def _draw_whole(programs: Programs, index: Index, delta: float, rng_key: jax.Array) -> Draws:
    """The choice is a branching site like any other, and comes first: one of the two programs draws it all."""
    choice = dist.Bernoulli(delta)
    if not numpyro.sample(CHOICE, choice, rng_key=rng_key, infer={"branching": True}):
        guide_run = sample(programs.guide, programs.arguments, index)
        sites.check_guide(guide_run)
        return Draws.of(guide_run)
    run = _sample_u(programs, index)
    draws = Draws.of(run)
    if not draws.plates:
        return draws
    guide_run = sample(programs.guide, programs.arguments, index)  # for its plates: all particles see one minibatch
    matching.check_defensive_minibatch((run, guide_run), draws.plates)
    return Draws.of(_sample_u(programs, index, Draws.of(guide_run).plates))


def _sample_u(programs: Programs, index: Index, plates: dict[str, jax.Array] | None = None) -> Trace:
    if programs.defensive_guide is None:
        return sample(programs.model, programs.arguments, index, plates)
    run = sample(programs.defensive_guide, programs.arguments, index, plates)
    sites.check_defensive_guide(run)
    return run
