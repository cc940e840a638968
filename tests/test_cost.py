"""Cost by deterministic measures: floating point operations against a step written by hand in plain JAX."""

import math

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.nn import log_sigmoid, log_softmax, one_hot, sigmoid
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI

import rws_jax
from rws_jax import __main__ as demo
from rws_jax.estimators.bound import theta_loss
from rws_jax.estimators.score import phi_loss
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.vectorized import Vectorized
from tests import oracles

BATCH_SIZE, NUM_PARTICLES = 128, 10


def log_prob(logits, z):
    """Log density of a Bernoulli vector."""
    return jnp.sum(z * logits + log_sigmoid(-logits), axis=-1)


def step_by_hand(optimizer, state, x):
    """What the demo's wake step would be without NumPyro or rws_jax."""
    theta, phi, theta_opt_state, phi_opt_state, rng_key = state
    rng_key, *keys = jax.random.split(rng_key, 3)

    def loss(theta, phi):
        affine = lambda params, name, x: x @ params[f"{name}_weight"] + params[f"{name}_bias"]
        draw = lambda key, probs: jax.random.bernoulli(key, jax.lax.stop_gradient(probs)).astype(float)
        h1_logits = affine(phi, "q1", x)
        h1 = draw(keys[0], jnp.broadcast_to(sigmoid(h1_logits), (NUM_PARTICLES, *h1_logits.shape)))
        h2_logits = affine(phi, "q2", h1)
        h2 = draw(keys[1], sigmoid(h2_logits))
        log_q = log_prob(h1_logits, h1) + log_prob(h2_logits, h2)
        log_p = log_prob(theta["prior"], h2) + log_prob(affine(theta, "p1", h2), h1)
        log_p = log_p + log_prob(affine(theta, "p0", h1), x)
        log_w = log_p - jax.lax.stop_gradient(log_q)
        w = jax.lax.stop_gradient(jax.nn.softmax(log_w, axis=0))
        theta_loss = -jnp.sum(logsumexp(log_w, axis=0) - jnp.log(NUM_PARTICLES))
        phi_loss = -jnp.sum(w * log_q)
        return theta_loss + phi_loss, (theta_loss, phi_loss, 1.0 / jnp.sum(w**2, axis=0))

    grads, aux = jax.grad(loss, argnums=(0, 1), has_aux=True)(theta, phi)
    updates, theta_opt_state = optimizer.update(grads[0], theta_opt_state, theta)
    theta = optax.apply_updates(theta, updates)
    updates, phi_opt_state = optimizer.update(grads[1], phi_opt_state, phi)
    phi = optax.apply_updates(phi, updates)
    return (theta, phi, theta_opt_state, phi_opt_state, rng_key), aux


def flops(step, *args):
    return jax.jit(step).lower(*args).compile().cost_analysis()["flops"]


def num_kernels(step, *args):
    return jax.jit(step).lower(*args).compile().as_text().count(" fusion(")


def over_by_hand(measure):
    """What a wake step of the demo costs, over that of one written by hand."""
    x = (jax.random.uniform(jax.random.key(0), (BATCH_SIZE, 64)) < 0.3).astype(float)
    rws = rws_jax.make_step(demo.model, demo.guide, num_particles=NUM_PARTICLES)
    state = rws.init(jax.random.key(0), x)
    by_hand = measure(lambda state, x: step_by_hand(optax.adam(1e-3), state, x), state.plain[:5], x)
    return measure(rws.step, state, x) / by_hand


@pytest.mark.usefixtures("allow_rank_promotion")
def test_a_wake_step_costs_hardly_more_than_one_written_by_hand():
    """One pass over one set of particles: the arithmetic that drawing and scoring share is done once."""
    assert 0.9 < over_by_hand(flops) <= 1.15


@pytest.mark.usefixtures("allow_rank_promotion")
def test_a_step_is_not_many_more_kernels_than_one_written_by_hand():
    """The guard, the info and keys for every particle: most of the time to compile a step is spent on its kernels."""
    assert over_by_hand(num_kernels) <= 1.4


def work(jaxpr):
    """Numbers that a function computes, products of matrices as so many as they multiply; loops count all their steps.

    XLA's cost analysis counts one step of each loop.
    """
    total = 0
    for eqn in jaxpr.eqns:
        inner = [param for param in jax.tree.leaves(list(eqn.params.values())) if hasattr(param, "eqns")]
        inner = [getattr(param, "jaxpr", param) for param in inner]
        if inner:
            total += eqn.params.get("length", 1) * sum(map(work, inner))
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shared = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * shared * eqn.outvars[0].aval.size
        else:
            total += sum(var.aval.size for var in eqn.outvars)
    return total


@pytest.mark.usefixtures("allow_rank_promotion")
def test_a_program_with_a_scan_costs_hardly_more_than_one_loop_by_hand():
    """The guide's network runs once a step, where its draws are made."""
    num_series, num_steps, num_units, num_regimes = 8, 5, 16, 4
    x = jnp.linspace(-1.0, 1.0, num_series * num_steps).reshape(num_steps, num_series)
    weights = {"hidden": jnp.eye(num_units), "regime": jnp.ones((num_regimes, num_units))}
    weights["logits"] = jnp.linspace(-1.0, 1.0, num_units * num_regimes).reshape(num_units, num_regimes)
    theta = {"transition": jnp.eye(num_regimes), "loc": jnp.arange(4.0)}

    def network(phi, z, hidden, x):
        hidden = jnp.tanh(hidden @ phi["hidden"] + phi["regime"][z] + x[:, None])
        return hidden, hidden @ phi["logits"]

    def model(x):
        transition, loc = (numpyro.param(name, value) for name, value in theta.items())

        def step(z, x):
            with numpyro.plate("series", num_series):
                z = numpyro.sample("z", dist.Categorical(logits=transition[z]))
                numpyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)
            return z, None

        scan(step, jnp.zeros(num_series, int), x)

    def guide(x):
        phi = {name: numpyro.param(name, value) for name, value in weights.items()}

        def step(carry, x):
            hidden, logits = network(phi, *carry, x)
            with numpyro.plate("series", num_series):
                z = numpyro.sample("z", dist.Categorical(logits=logits))
            return (z, hidden), None

        scan(step, (jnp.zeros(num_series, int), jnp.zeros((num_series, num_units))), x)

    def by_hand(params, rng_key):
        theta, phi = params
        log_prob = lambda logits, z: jnp.sum(log_softmax(logits) * one_hot(z, num_regimes), axis=-1)

        def step(carry, x_and_key):
            z, hidden, log_p, log_q = carry
            x, rng_key = x_and_key
            hidden, logits = network(phi, z, hidden, x)
            drawn = jax.random.categorical(rng_key, logits)
            log_q, log_p = log_q + log_prob(logits, drawn), log_p + log_prob(theta["transition"][z], drawn)
            return (drawn, hidden, log_p + norm.logpdf(x, theta["loc"][drawn]), log_q), None

        shape = NUM_PARTICLES, num_series
        start = jnp.zeros(shape, int), jnp.zeros((*shape, num_units)), jnp.zeros(shape), jnp.zeros(shape)
        (*_, log_p, log_q), _ = jax.lax.scan(step, start, (x, jax.random.split(rng_key, num_steps)))
        log_w = log_p - jax.lax.stop_gradient(log_q)
        w = jax.lax.stop_gradient(jax.nn.softmax(log_w, axis=0))
        return -jnp.sum(logsumexp(log_w, axis=0)) - jnp.sum(w * log_q)

    def losses(params, _):
        scored = Vectorized()(WakeParticle(), oracles.programs_of(model, guide, *params, x), NUM_PARTICLES)
        return theta_loss(scored) + phi_loss(scored)

    of = lambda loss: work(jax.make_jaxpr(jax.jit(jax.grad(loss)))((theta, weights), jax.random.key(0)).jaxpr)
    assert 0.9 < of(losses) / of(by_hand) <= 1.3


@pytest.mark.usefixtures("allow_rank_promotion")
def test_an_update_of_svi_costs_what_a_step_does():
    """The checks that run whenever it is traced leave nothing behind in the compiled program."""
    x = (jax.random.uniform(jax.random.key(0), (BATCH_SIZE, 64)) < 0.3).astype(float)
    rws = rws_jax.make_step(demo.model, demo.guide, num_particles=NUM_PARTICLES)
    loss = rws_jax.ReweightedWakeSleep(num_particles=NUM_PARTICLES)
    svi = SVI(demo.model, demo.guide, optax.adam(1e-3), loss=loss)
    of_step = flops(rws.step, rws.init(jax.random.key(0), x), x)
    assert flops(svi.update, svi.init(jax.random.key(0), x), x) <= 1.02 * of_step


@pytest.mark.usefixtures("allow_rank_promotion")
def test_the_wake_program_contains_no_sleep():
    """A model that cannot be dreamt from would raise if it were asked to."""

    def model(images):
        demo.model(images)
        numpyro.factor("penalty", jnp.zeros(()))

    x = jnp.zeros((4, 64))
    rws = rws_jax.make_step(model, demo.guide)
    _, info = rws.step(rws.init(jax.random.key(0), x), x)
    assert info.sleep_phi_loss is None


def of_chain(num_sites):
    """A step on dreams of a chain, each of whose latents depends on the one before."""

    def model(x):
        z = 0.0
        for i in range(num_sites):
            z = numpyro.sample(f"z{i}", dist.Normal(0.9 * z, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        z = x
        for i in range(num_sites):
            z = numpyro.sample(f"z{i}", dist.Normal(numpyro.param(f"a{i}", 0.5) * z, 1.0))

    rws = rws_jax.make_step(model, guide, insomnia=0.0, num_particles=NUM_PARTICLES)
    return flops(rws.step, rws.init(jax.random.key(0), 1.3), 1.3)


def test_dreams_of_a_chain_cost_in_proportion_to_its_length():
    """Each gradient would draw all latents before its own anew, as in plain JAX on CPU."""
    assert of_chain(12) < 2.3 * of_chain(6)
