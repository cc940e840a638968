"""Training to the posterior of conjugate models: the set-ups and tolerances of Pyro's own tests of its RWS.

From pyro-ppl/pyro, tests/infer/test_inference.py: start, optimizer, number of steps and particles are theirs.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import rws_jax

# Two means of four data, with prior precision 0.1 and noise precisions 6 and 4.
PRIOR_PRECISION, PRIOR_LOC = jnp.array([0.1, 0.1]), jnp.array([0.0, 0.5])
NOISE_PRECISION = jnp.array([6.0, 4.0])
NORMAL_DATA = jnp.array([[-0.1, 0.3], [0.0, 0.4], [0.2, 0.5], [0.1, 0.7]])
PRECISION = PRIOR_PRECISION + 4 * NOISE_PRECISION
LOC = (NORMAL_DATA.sum(axis=0) * NOISE_PRECISION + PRIOR_LOC * PRIOR_PRECISION) / PRECISION
LOG_SCALE = -0.5 * jnp.log(PRECISION)


def normal_model():
    loc = numpyro.sample("loc", dist.Normal(PRIOR_LOC, PRIOR_PRECISION**-0.5).to_event(1))
    with numpyro.plate("data", 4):
        numpyro.sample("x", dist.Normal(loc, NOISE_PRECISION**-0.5).to_event(1), obs=NORMAL_DATA)


def normal_guide():
    loc, log_scale = numpyro.param("loc_q", LOC + 0.134), numpyro.param("log_scale_q", LOG_SCALE - 0.14)
    numpyro.sample("loc", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


COUNTS = jnp.array([1.0, 2.0, 3.0])
RATE_POSTERIOR = jnp.array([1.0 + 6.0, 1.0 + 3.0])


def poisson_model():
    rate = numpyro.sample("rate", dist.Gamma(1.0, 1.0))
    with numpyro.plate("data", 3):
        numpyro.sample("x", dist.Poisson(rate), obs=COUNTS)


def gamma_guide():
    positive = dist.constraints.positive
    alpha = numpyro.param("alpha", RATE_POSTERIOR[0] + jnp.exp(0.17), constraint=positive)
    beta = numpyro.param("beta", RATE_POSTERIOR[1] / jnp.exp(0.143), constraint=positive)
    numpyro.sample("rate", dist.Gamma(alpha, beta))


TOSSES = jnp.array([0.0, 1.0, 1.0, 1.0])
LOG_BETA_POSTERIOR = jnp.log(jnp.array([1.0 + 3.0, 1.0 + 1.0]))


def bernoulli_model():
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    with numpyro.plate("data", 4):
        numpyro.sample("x", dist.Bernoulli(p), obs=TOSSES)


def beta_guide():
    log_alpha = numpyro.param("log_alpha", LOG_BETA_POSTERIOR[0] + 0.17)
    log_beta = numpyro.param("log_beta", LOG_BETA_POSTERIOR[1] - 0.143)
    numpyro.sample("p", dist.Beta(jnp.exp(log_alpha), jnp.exp(log_beta)))


# name -> model, guide, optimizer, particles, steps of the reparameterised and of the other tests, errors, tolerances
CONJUGATE = {
    "normal-normal": (
        normal_model, normal_guide, optax.adam(1e-3), 3, (2500, 7500),
        lambda p: (jnp.mean((p["loc_q"] - LOC) ** 2), jnp.mean((p["log_scale_q"] - LOG_SCALE) ** 2)), (0.05, 0.05),
    ),
    "poisson-gamma": (
        poisson_model, gamma_guide, optax.adam(2e-4, b1=0.97, b2=0.999), 2, (5000, 12500),
        lambda p: (p["alpha"] - RATE_POSTERIOR[0], p["beta"] - RATE_POSTERIOR[1]), (0.2, 0.15),
    ),
    "bernoulli-beta": (
        bernoulli_model, beta_guide, optax.adam(1e-3, b1=0.97, b2=0.999), 2, (5000, 5000),
        lambda p: (p["log_alpha"] - LOG_BETA_POSTERIOR[0], p["log_beta"] - LOG_BETA_POSTERIOR[1]), (0.08, 0.08),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("allow_rank_promotion")
@pytest.mark.parametrize("gradient", ["dreg", "score"])
@pytest.mark.parametrize("name", CONJUGATE)
def test_guides_reach_the_posterior(name, gradient):
    model, guide, optimizer, num_particles, num_steps, errors_of, tolerances = CONJUGATE[name]
    rws = rws_jax.make_step(model, guide, phi_optimizer=optimizer, num_particles=num_particles, gradient=gradient)
    state = rws.init(jax.random.key(0))
    errors = lambda state: jnp.abs(jnp.array(errors_of(rws.get_params(state))))
    state, _ = jax.lax.scan(lambda s, _: rws.step(s), state, length=num_steps[gradient == "score"])
    assert jnp.all(errors(state) < jnp.array(tolerances)), errors(state)
