"""Particles in chunks: the same results, in the memory of one chunk and of a few numbers for each particle."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import rws_jax
from rws_jax import __main__ as demo
from tests import models
from tests.estimates import DELTA
from tests.oracles import seeded
from tests.test_options import uniform_guide

NUM_PARTICLES = 7
pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
LOSSES = {
    "theta": (rws_jax.wake_theta_loss, {}),
    "phi": (rws_jax.wake_phi_loss, {}),
    "phi, defensive": (rws_jax.wake_phi_loss, {"defensive": DELTA}),
    "sleep": (rws_jax.sleep_phi_loss, {}),
}
DREG = {"phi, dreg": (rws_jax.wake_phi_loss, {"gradient": "dreg"})}


slow = lambda *names: [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", slow("subsampled"))
def test_losses_and_gradients_do_not_depend_on_the_size_of_chunks(name):
    """Chunks of 3, 3 and 1."""
    by_hand = models.BY_HAND[name]
    params = models.BY_HAND_THETA, models.BY_HAND_PHI
    losses = LOSSES | (DREG if name in ("one latent", "two latents") else {})

    @jax.jit
    def run():
        def one(kind, chunk_size):
            loss, options = losses[kind]
            options = {**options, "num_particles": NUM_PARTICLES, "chunk_size": chunk_size}
            value = lambda *p: loss(*p, *seeded(by_hand.model, by_hand.guide), by_hand.x, **options)
            return jax.value_and_grad(value, argnums=(0, 1))(*params)

        return [{kind: one(kind, size) for kind in losses} for size in (None, 3)]

    expected, found = run()
    chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=1e-6)


OPTIONS = {
    "wake, single particles": {"chunk_size": 1},
    "wake, room for all": {"chunk_size": 10},
    "both": {"insomnia": 0.3, "num_sleep_particles": 5},
    "sleep": {"insomnia": 0.0},
    "defensive": {"defensive": DELTA, "defensive_guide": uniform_guide},
    "phi_steps": {"phi_steps": 2},
}


@pytest.mark.parametrize(
    "name", ["wake, single particles", *slow("wake, room for all", "both", "sleep", "defensive", "phi_steps")]
)
def test_steps_and_infos_do_not_depend_on_the_size_of_chunks(name):
    options = {"num_particles": NUM_PARTICLES, "phi_optimizer": optax.adam(0.1), "chunk_size": 3, **OPTIONS[name]}

    def train(**others):
        rws = rws_jax.make_step(models.binary_model, models.binary_guide, **{**options, **others})
        state = rws.init(jax.random.key(0), models.BINARY_DATA)
        return jax.lax.scan(lambda state, _: rws.step(state, models.BINARY_DATA), state, length=3)

    (state, infos), (chunked_state, chunked_infos) = train(chunk_size=None), train()
    chex.assert_trees_all_close(chunked_infos, infos, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close((chunked_state.theta, chunked_state.phi), (state.theta, state.phi), rtol=1e-4)


def bounded_model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z + numpyro.param("m", 0.0), 1.0), obs=x)


def wide_guide(x):
    loc = numpyro.param("loc", jnp.array([0.5, 1.5, 90.0]))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.floors
def test_dead_particles_chunks_and_units_are_counted_and_train_nothing():
    """A chunk of one particle is often dead where its unit is not; the last unit is dead in all of them."""
    x = jnp.array([0.3, -0.2, 0.5])

    def gradients(chunk_size):
        sgd = {"theta_optimizer": optax.sgd(1.0), "phi_optimizer": optax.sgd(1.0)}
        rws = rws_jax.make_step(bounded_model, wide_guide, num_particles=5, chunk_size=chunk_size, **sgd)
        state, info = rws.step(rws.init(jax.random.key(0), x), x)
        return (state.theta, state.phi), info

    (params, info), (chunked, chunked_info) = gradients(None), gradients(1)
    assert 5 < int(info.num_dead_particles) < 15
    assert int(info.num_dead_units) == 1
    assert chunked[1]["loc"][2] == 90.0
    chex.assert_trees_all_close((chunked, chunked_info), (params, info), rtol=1e-5)


@pytest.mark.slow
def test_chunked_steps_can_be_vmapped_over_seeds():
    rws = rws_jax.make_step(models.one_model, models.one_guide, num_particles=5, chunk_size=2, insomnia=0.5)
    run = lambda key: rws.step(rws.init(key, 1.3), 1.3)[1].phi_loss
    keys = jax.random.split(jax.random.key(0), 3)
    assert jnp.allclose(jax.vmap(run)(keys), jnp.stack([run(key) for key in keys]), rtol=1e-5)


def two_latents_loss(chunk_size, params, x=1.3, loss=rws_jax.wake_theta_loss):
    two = seeded(*models.BY_HAND["two latents"][:2])
    return loss(params, models.BY_HAND_PHI, *two, x, num_particles=5, chunk_size=chunk_size)


# How a loss is differentiated: what is closed over is traced by then, and with respect to what.
WAYS = {
    "jit inside": lambda loss: jax.grad(jax.jit(loss)),
    "jit outside": lambda loss: jax.jit(jax.grad(loss)),
    "checkpoint": lambda loss: jax.grad(jax.checkpoint(loss)),
    "cond": lambda loss: jax.jit(jax.grad(lambda p: jax.lax.cond(p["mu"] > -9.0, loss, lambda p: 0.0, p))),
    "scan over data": lambda loss: jax.grad(lambda p: jax.lax.map(lambda x: loss(p, x=x), jnp.array([1.3, 0.2])).sum()),
    "forward mode": lambda loss: lambda p: jax.jvp(loss, (p,), (jax.tree.map(jnp.ones_like, p),))[1],
    "an argument": lambda loss: lambda p: jax.grad(lambda x: loss(p, x=x))(1.3),
}


@pytest.mark.parametrize(
    "way", ["jit inside", *slow("jit outside", "checkpoint", "cond", "scan over data", "an argument"), "forward mode"]
)
def test_chunks_are_differentiated_like_any_function(way):
    params = models.BY_HAND_THETA
    differentiate = lambda size: WAYS[way](lambda p, **kwargs: two_latents_loss(size, p, **kwargs))
    found, expected = differentiate(2)(params), jax.jit(differentiate(None))(params)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.floors
def test_second_derivatives_are_those_of_all_particles_at_once():
    found, expected = (
        jax.hessian(lambda p, size=size: two_latents_loss(size, p))(models.BY_HAND_THETA) for size in (2, None)
    )
    assert jnp.abs(expected["mu"]["mu"]) > 0.01
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_gradients_have_the_types_of_parameters_and_are_summed_in_single_precision():
    """In bfloat16 a sum of 2,000 small gradients would stop to grow; parameters of other sites may be integers."""

    def model():
        numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=0.0)

    def guide():
        numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0).astype(jnp.float32) + 1.0, 1.0))

    def gradient(chunk_size):
        phi = {"a": jnp.zeros((), jnp.bfloat16), "other": jnp.array(3)}
        loss = lambda a: rws_jax.sleep_phi_loss(
            {}, {**phi, "a": a}, *seeded(model, guide), num_particles=2000, chunk_size=chunk_size,
            simulated_data_to_args=lambda data: ((), {}),
        )  # fmt: skip
        return jax.jit(jax.grad(loss))(phi["a"])

    found, expected = gradient(1), gradient(None)
    assert found.dtype == expected.dtype == jnp.bfloat16
    assert jnp.allclose(found.astype(float), expected.astype(float), rtol=0.01)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_weights_that_are_wrong_are_seen_in_chunks_as_elsewhere(value):
    """In the losses and in the gradients of their unit alone."""

    def model(x):
        locs = numpyro.param("locs", jnp.zeros(3))
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z + locs, 1.0), obs=x)
            numpyro.factor("wrong", jnp.where((jnp.arange(3) == 1) & (z > 0.0), value, 0.0))

    def guide(x):
        locs = numpyro.param("q_locs", jnp.zeros(3))
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(locs, 1.0))

    def run(loss, chunk_size):
        value = lambda *params: loss(
            *params, *seeded(model, guide), jnp.ones(3), num_particles=6, chunk_size=chunk_size
        )
        return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))({"locs": jnp.zeros(3)}, {"q_locs": jnp.zeros(3)})

    for loss in (rws_jax.wake_theta_loss, rws_jax.wake_phi_loss):
        (found, found_grads), (expected, grads) = run(loss, 2), run(loss, None)
        assert not jnp.isfinite(found)
        assert jnp.array_equal(found, expected, equal_nan=True)
        chex.assert_trees_all_close(found_grads, grads, rtol=1e-5, atol=1e-6)


def test_a_program_that_is_not_trained_has_no_gradient_were_it_infinite():
    def guide(x):
        numpyro.sample("z", dist.Normal(jnp.sqrt(numpyro.param("a", 0.0)), 1.0))

    loss = lambda phi, chunk_size: rws_jax.wake_theta_loss(
        models.BY_HAND_THETA, phi, *seeded(models.one_model, guide), 1.3, num_particles=5, chunk_size=chunk_size
    )
    gradient = lambda chunk_size: jax.jit(jax.grad(partial(loss, chunk_size=chunk_size)))({"a": jnp.array(0.0)})
    assert gradient(2) == gradient(None) == {"a": 0.0}


@pytest.mark.slow
def test_memory_grows_by_a_few_numbers_for_each_particle_and_unit():
    """Temporary memory of a compiled step of the digits network: beside one chunk, log densities and their weights."""
    x = jnp.zeros((16, 64))

    def memory(num_particles, chunk_size):
        options = {"num_particles": num_particles, "chunk_size": chunk_size, "insomnia": 0.5}
        rws = rws_jax.make_step(demo.model, demo.guide, **options)
        compiled = rws.step.lower(jax.eval_shape(rws.init, jax.random.key(0), x), x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many, unchunked = memory(20, 10), memory(2000, 10), memory(200, None)
    assert (many - few) / (1980 * len(x)) <= 8 * 4  # bytes
    assert unchunked > 5 * many


@pytest.mark.slow
def test_chunks_cost_one_more_run_of_the_programs():
    """One for the weights, and one for both gradients; XLA counts the body of a loop once, so of two chunks half."""
    x = jnp.zeros((32, 64))

    def flops(chunk_size):
        rws = rws_jax.make_step(demo.model, demo.guide, num_particles=40, chunk_size=chunk_size)
        compiled = rws.step.lower(jax.eval_shape(rws.init, jax.random.key(0), x), x).compile()
        return compiled.cost_analysis()["flops"]

    assert 1.2 < 2.0 * flops(20) / flops(None) <= 1.6
