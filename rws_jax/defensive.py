r"""Defensive proposals: particles from a mixture of the guide and a program that never stops proposing.

.. math:: r(z \mid x) = (1 - \delta) \, q_\phi(z \mid x) + \delta \, u(z)

A guide that has come to leave out a part of the posterior draws no particle there, and so never learns of it again
(branch pruning; Le et al. 2019, arXiv 1805.10469). Particles of u reach it. Weights are p / r with r at the point
drawn: they are bounded where p / u is, and the bound stays a bound.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from rws_jax import matching, sites
from rws_jax.density import Units, those_of
from rws_jax.paths import DEFENDS, Walk
from rws_jax.programs import Call, Draws, draws_of, sampled, scored
from rws_jax.sites import Trace
from rws_jax.validation import fail


class Defence(NamedTuple):
    """The share `delta` of u in the mixture, and u: a program without parameters or, if None, the model's prior."""

    delta: float
    model: Call
    guide: Call | None


def draw_defensive(defence: Defence, guide: Call, guide_run: Trace, index: Any, *, whole: bool = False) -> Draws:
    """Replace, unit by unit and with probability `delta`, what the guide drew by what u draws.

    A particle is replaced as a `whole` where sites may differ between runs: half of one may not go with half of
    another. Each unit's draw comes from r all the same.
    """
    draws = draws_of(guide_run)
    if defence.guide is None:
        model_run = run = sampled(defence.model.stopped(), index, draws.plates)
        sites.check_prior(run, guide_run)
    else:
        run = sampled(defence.guide, index, draws.plates)
        sites.check_defensive_guide(run)
        model_run = scored(defence.model.stopped(), index, draws, drawn_from=those_of(guide_run))  # for its plates
    rng_key = jax.random.fold_in(jax.random.fold_in(guide.rng_key(), _CHOICE), index)
    if whole:
        chosen = jax.random.bernoulli(rng_key, defence.delta)
        return Draws(draws_of(run).latents, draws.plates) if chosen else draws
    if defence.guide is None:
        matching.check_match(run, guide_run)
    else:
        matching.check_defensive_match(guide_run, run)
    chosen = jax.random.bernoulli(rng_key, defence.delta, Units.of(model_run, guide_run, run).batch_shape)
    latents = {}
    for name, site in sites.latent_sites(guide_run).items():
        mine, other = site["value"], run[name]["value"]
        event = (1,) * site["fn"].event_dim
        choice = jnp.reshape(chosen, (1,) * (mine.ndim - chosen.ndim - len(event)) + chosen.shape + event)
        latents[name] = jnp.where(choice, other, mine)
    return Draws(latents, draws.plates)


def draw_on_path(defence: Defence, guide: Call, index: Any) -> Draws:
    """The same by a path, of which the choice is the first step: one of the two programs runs, and draws it all."""
    rng_key = jax.random.fold_in(jax.random.fold_in(guide.rng_key(), _CHOICE), index)
    walk = cast(Walk, guide.walk)
    if not walk.choose(DEFENDS, lambda: jax.random.bernoulli(rng_key, defence.delta)):
        run = sampled(guide, index)
        sites.check_guide(run)
    else:
        run = sampled(defence.guide or defence.model.stopped(), index)
        if defence.guide is not None:
            sites.check_defensive_guide(run)
    draws = draws_of(run)
    for name in draws.plates:
        fail(
            ValueError,
            f"programs have branching sites, and defensive proposals would see another minibatch of plate {name!r}",
            expected="no subsampled plate beside branching sites and option 'defensive'",
            found=f"plate {name!r} with subsample_size",
            hint="write the programs for one datum, and pass minibatches with data_axes=0",
        )
    return draws


_CHOICE = 0xFFFFFFFF  # a number that neither a particle nor a site has
