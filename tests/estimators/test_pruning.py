"""Branches that a guide has stopped to propose: plain wake-phi never learns of them again, defensive proposals do.

A small sibling of benchmarks/experiments/mixture.py: z is one of five branches, x | z ~ N(10 z, 5^2), and training
starts with the mass of model and guide at the wrong end.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.stats import norm

import rws_jax
from tests.oracles import OPTIMISED

NUM_BRANCHES, BATCH_SIZE = 5, 50
TRUTH = jnp.arange(1.0, NUM_BRANCHES + 1) / 15.0
LOCS = 10.0 * jnp.arange(NUM_BRANCHES)


def model(x):
    logits = numpyro.param("logits", 2.0 * jnp.arange(NUM_BRANCHES, 0, -1))
    with numpyro.plate("data", BATCH_SIZE):
        z = numpyro.sample("z", dist.Categorical(logits=logits))
        numpyro.sample("x", dist.Normal(LOCS[z], 5.0), obs=x)


def guide(x):
    """Logits that are quadratic in x, which includes the posterior."""
    weight = numpyro.param("weight", jnp.zeros((3, NUM_BRANCHES)).at[0].set(6.0 * jnp.arange(NUM_BRANCHES, 0, -1)))
    features = jnp.stack([jnp.ones_like(x), x / 20.0, (x / 20.0) ** 2], axis=-1)
    with numpyro.plate("data", BATCH_SIZE):
        numpyro.sample("z", dist.Categorical(logits=features @ weight))


def uniform_guide(x):
    with numpyro.plate("data", BATCH_SIZE):
        numpyro.sample("z", dist.Categorical(jnp.full((BATCH_SIZE, NUM_BRANCHES), 1.0 / NUM_BRANCHES)))


def draw_data(rng_key):
    z_key, x_key = jax.random.split(rng_key)
    z = jax.random.choice(z_key, NUM_BRANCHES, (BATCH_SIZE,), p=TRUTH)
    return LOCS[z] + 5.0 * jax.random.normal(x_key, (BATCH_SIZE,))


def errors_after_training(rng_key, **options):
    """Distances of the branch probabilities, and of the posterior at 100 points, from the truth."""
    adam = optax.adam(1e-2)
    rws = rws_jax.make_step(model, guide, theta_optimizer=adam, phi_optimizer=adam, **options)
    init_key, data_key = jax.random.split(rng_key)
    body = lambda state, i: rws.step(state, draw_data(jax.random.fold_in(data_key, i)))
    state = rws.init(init_key, jnp.zeros(BATCH_SIZE))
    state, _ = jax.lax.scan(body, state, jnp.arange(5000))
    x = jnp.linspace(-10.0, 50.0, BATCH_SIZE)
    program = numpyro.handlers.substitute(numpyro.handlers.seed(guide, 0), dict(state.phi))
    posterior = jax.nn.softmax(jnp.log(TRUTH)[None] + norm.logpdf(x[:, None], LOCS[None], 5.0))
    q_error = jnp.linalg.norm(numpyro.handlers.trace(program).get_trace(x)["z"]["fn"].probs - posterior, axis=-1)
    return jnp.linalg.norm(jax.nn.softmax(state.theta["logits"]) - TRUTH), q_error.mean()


@pytest.mark.slow
@pytest.mark.usefixtures("allow_rank_promotion")
def test_defensive_proposals_find_lost_branches():
    """Medians of five seeds."""
    options = {
        "plain": {"control_variate": False},
        "defensive": {"defensive": 0.2, "defensive_guide": uniform_guide},
    }
    train = lambda name: jax.vmap(lambda key: errors_after_training(key, **options[name]))
    run = lambda name: jax.jit(train(name), compiler_options=OPTIMISED)(jax.random.split(jax.random.key(0), 5))
    plain, defensive = ([float(jnp.median(error)) for error in run(name)] for name in options)
    assert plain[0] > 0.9  # all mass is where it was
    assert plain[1] > 0.9
    assert defensive[0] < 0.05
    assert defensive[1] < 0.25
