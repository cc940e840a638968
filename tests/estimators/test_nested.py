"""Nested particles: expectations by enumeration, formulas by hand on the same draws, closed forms."""

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp

import rws_jax
from rws_jax.estimators import score
from rws_jax.estimators.bound import theta_loss
from rws_jax.estimators.nested import NestedParticle
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.vectorized import Vectorized
from rws_jax.programs.run import Draws
from tests.estimators import nested_cases
from tests.estimators.nested_cases import CASES, PARAMS
from tests.models import log_bernoulli, rows
from tests.oracles import programs_of, seeded

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
LOSSES = theta_loss, score.plain_phi_loss, score.phi_loss


# Formulas by hand, on the same draws

FAST = ["three levels"]


@pytest.mark.parametrize("name", rows(CASES, fast=FAST))
def test_losses_and_gradients_are_those_of_formulas_by_hand(name):
    """With common and with independent numbers; of log densities that NumPyro computes in its own traces."""
    case, params = CASES[name], PARAMS[name]
    num_data = len(case.x) if case.data_axes is not None else None

    def by_package(params, common):
        programs_ = seeded(case.model, case.guide)
        options = {"num_local_particles": 3, "local_numbers": "common" if common else "independent"}
        options |= {"num_particles": 2, "data_axes": case.data_axes}
        theta = rws_jax.wake_theta_loss(*params, *programs_, case.x, **options)
        plain = rws_jax.wake_phi_loss(*params, *programs_, case.x, **options, control_variate=False)
        return theta, plain, rws_jax.wake_phi_loss(*params, *programs_, case.x, **options)

    def by_hand(params, draws):
        if num_data is None:
            return nested_cases.losses_by_hand(case, params, draws, case.x)
        of_datum = lambda n: jax.tree.map(lambda leaf: leaf[:, n], draws)
        losses = [nested_cases.losses_by_hand(case, params, of_datum(n), case.x[n]) for n in range(num_data)]
        return tuple(map(sum, zip(*losses, strict=True)))

    @partial(jax.jit, static_argnums=0)
    def run(common):
        draws = jax.lax.stop_gradient(nested_cases.draws_of(case, params, 2, 3, common))
        with_gradients = lambda losses: (losses(params), jax.jacrev(losses)(params))
        return with_gradients(partial(by_package, common=common)), with_gradients(partial(by_hand, draws=draws))

    for common in (True, False):
        found, expected = run(common)
        chex.assert_trees_all_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
        for of_found, of_hand, kind in zip(found[1], expected[1], ("theta", "phi", "phi"), strict=True):
            trained, other = (0, 1) if kind == "theta" else (1, 0)
            chex.assert_trees_all_close(of_found[trained], of_hand[trained], rtol=2e-4, atol=2e-5)
            assert all(jnp.all(leaf == 0.0) for leaf in jax.tree.leaves(of_found[other]))
