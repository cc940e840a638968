"""Dreams with draws of the guide that is shown them, scored as log densities written out by hand say."""

from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from rws_jax.arguments import trained_programs_of
from rws_jax.options import DreamOptions
from rws_jax.posterior.dreams.dreamt import compare_with_dreams, log_weights
from tests import models

NUM_DREAMS, NUM_SAMPLES = 3, 4


def everything(comparison):
    dream, scored, of_dream = comparison.dream, comparison.scored, comparison.dream_scored
    of_dream = {"latents": dream.draws.latents, "data": dream.data, "log_p": of_dream.log_p, "log_q": of_dream.log_q}
    of_draw = {"latents": comparison.latents, "log_p": scored.log_p, "log_q": scored.log_q}
    return of_dream, of_draw, log_weights(comparison)


def as_it_is(tree):
    return tree


def run(model, guide, *args, params, num_dreams=NUM_DREAMS, num_samples=NUM_SAMPLES, statistic=everything, **options):
    model, guide = (wraps(program)(partial(program)) for program in (model, guide))  # nothing is compiled of these yet
    how = DreamOptions(**options)
    programs = trained_programs_of(run, how, jax.random.key(0), params, model, guide, args, {})
    return compare_with_dreams(programs, how.dreamer, statistic, as_it_is, num_dreams, num_samples, how.execution)


FAST = ["hierarchical", "masked"]


@pytest.mark.parametrize("name", models.rows(list(models.BY_HAND), fast=FAST))
def test_densities_are_those_by_hand(name, allow_key_reuse, allow_rank_promotion):
    hand = models.BY_HAND[name]
    dreams, draws, log_w = run(hand.model, hand.guide, hand.x, params=models.BY_HAND_THETA | models.BY_HAND_PHI)
    for number in range(NUM_DREAMS):
        x = dreams["data"]["x"][number, 0]
        for scored in (dreams, draws):
            of_one = jax.tree.map(lambda leaf, number=number: leaf[number], scored)
            log_p = hand.log_p(models.BY_HAND_THETA, of_one["latents"], x)
            log_q = hand.log_q(models.BY_HAND_PHI, of_one["latents"], x)
            np.testing.assert_allclose(of_one["log_p"], log_p, rtol=2e-5, atol=2e-5)
            np.testing.assert_allclose(of_one["log_q"], log_q, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(log_w, draws["log_p"] - draws["log_q"], rtol=1e-6, atol=1e-6)
    for leaf in jax.tree.leaves(dreams):  # a dream is one for all of its draws, and no other dream
        assert all(np.array_equal(leaf[:, 0], leaf[:, draw]) for draw in range(NUM_SAMPLES))
    if name != "cond":
        assert len(np.unique(np.ravel(dreams["log_p"][:, 0]))) > 1
        assert len(np.unique(np.ravel(draws["log_q"]))) == draws["log_q"].size


def test_dreams_have_the_arguments_of_one_datum_after_another():
    """Far from one another: each dream's latent is near the offset of its datum."""

    def model(offset, x):
        z = numpyro.sample("z", dist.Normal(offset, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    offsets = jnp.array([0.0, 100.0, 200.0])
    guide = lambda offset, x: models.one_guide(x)
    options = {"params": models.BY_HAND_PHI, "num_dreams": 7, "data_axes": 0}
    dreams, _, _ = run(model, guide, offsets, jnp.zeros(3), **options)
    np.testing.assert_allclose(np.round(dreams["data"]["x"][:, 0], -2), jnp.tile(offsets, 3)[:7])
