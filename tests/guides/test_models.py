"""The exact evidences that guides are held against, by importance sampling from the prior and from exact posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rws_jax
from tests.guides.models import MODELS, as_guide


def weigh(problem, guide, data, num_particles):
    options = {"num_particles": num_particles, "data_axes": problem.data_axes}
    return rws_jax.importance_sample(jax.random.key(1), {}, problem.model, guide, *data, **options)


@pytest.mark.parametrize("name", MODELS)
def test_exact_evidence_is_that_of_particles_from_the_prior(name):
    """Within 5 standard errors, of 4 data for each model: one false alarm in 100,000."""
    problem = MODELS[name]
    data = problem.draw(jax.random.key(0), 4)
    estimate = weigh(problem, as_guide(problem.model), data, 20_000).log_evidence()
    assert np.all(estimate.standard_error < 0.2)  # so that there is something to compare
    assert np.all(jnp.abs(estimate.value - problem.log_evidence(*data)) < 5 * estimate.standard_error)


@pytest.mark.parametrize("name", [name for name, problem in MODELS.items() if problem.by_hand is not None])
def test_exact_posterior_weighs_every_particle_by_the_evidence(name):
    problem = MODELS[name]
    data = problem.draw(jax.random.key(0), 64)
    weighted = weigh(problem, problem.by_hand, data, 10)
    np.testing.assert_allclose(weighted.log_weights, np.tile(problem.log_evidence(*data), (10, 1)), atol=1e-4)
