"""Parameters that are trees: networks of flax.linen, flax.nnx and equinox."""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from numpyro.contrib.module import eqx_module, flax_module, nnx_module, random_flax_module
from numpyro.infer import SVI, Predictive

import rws_jax

X = jax.random.normal(jax.random.key(0), (6, 4))


def linen(size_in, size_out):
    return lambda name: flax_module(name, nn.Dense(size_out), input_shape=(1, size_in))


def flax_nnx(size_in, size_out):
    module = nnx.Linear(size_in, size_out, rngs=nnx.Rngs(0))
    return lambda name: nnx_module(name, module)


def equinox(size_in, size_out):
    module = eqx.nn.Linear(size_in, size_out, key=jax.random.key(0))
    return lambda name: jax.vmap(eqx_module(name, module))


def autoencoder(library):
    decoder, encoder = library(2, 4), library(4, 2)

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 2)), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(decoder("decoder")(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(encoder("encoder")(x), 1.0).to_event(1))

    return model, guide


@pytest.mark.floors
@pytest.mark.parametrize("library", [linen, flax_nnx, equinox])
def test_networks_train_on_both_sides(library):
    model, guide = autoencoder(library)
    optimizers = {"theta_optimizer": optax.adam(0.02), "phi_optimizer": optax.adam(0.02)}
    rws = rws_jax.make_step(model, guide, num_particles=10, insomnia=0.5, **optimizers)
    with jax.numpy_rank_promotion("allow"):  # flax adds biases to batches
        state = rws.init(jax.random.key(0), X)
        first = state
        state, infos = jax.lax.scan(lambda s, _: rws.step(s, X), state, None, length=300)
        params = rws.get_params(state, X)
    assert set(params) == {"decoder$params", "encoder$params"}
    assert bool(infos.finite.all())
    assert infos.wake_theta_loss[-50:].mean() < infos.wake_theta_loss[:10].mean()
    moved = jax.tree.map(
        lambda new, old: not jnp.allclose(new, old), (state.theta, state.phi), (first.theta, first.phi)
    )
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
@pytest.mark.parametrize("library", [linen, flax_nnx, equinox])
def test_networks_train_in_svi_as_in_make_step(library):
    programs, adam = autoencoder(library), optax.adam(0.02)
    options = {"num_particles": 10, "insomnia": 0.5}
    rws = rws_jax.make_step(*programs, theta_optimizer=adam, phi_optimizer=adam, **options)
    svi = SVI(*programs, adam, loss=rws_jax.ReweightedWakeSleep(**options))
    with jax.numpy_rank_promotion("allow"):
        state = rws.init(jax.random.key(0), X)
        start = rws.get_params(state, X)
        result = svi.run(jax.random.key(0), 5, X, progress_bar=False, init_params=start)
        state, infos = jax.lax.scan(lambda s, _: rws.step(s, X), state, None, length=5)
        expected = rws.get_params(state, X)
    chex.assert_trees_all_close(result.params, expected, rtol=1e-4, atol=1e-6)
    assert jnp.allclose(result.losses, infos.wake_theta_loss + infos.phi_loss, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:the guide .* reads no data")
@pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
@pytest.mark.parametrize("by", ["step", "svi"])
def test_a_module_all_of_whose_parameters_are_random_has_none(by):
    """Its param site holds shapes alone."""

    def model(x, y):
        net = random_flax_module("net", nn.Dense(1), prior=dist.Normal(0.0, 1.0), input_shape=(1, 2))
        with numpyro.plate("data", 5):
            numpyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=y)

    def guide(x, y):
        loc = numpyro.param("loc", jnp.zeros(3))
        numpyro.sample("net/bias", dist.Normal(loc[:1], 1.0).to_event(1))
        numpyro.sample("net/kernel", dist.Normal(loc[1:, None], 1.0).to_event(2))

    x, y = jnp.ones((5, 2)), jnp.arange(5.0)
    options = {"insomnia": 0.0, "model_has_params": False}
    if by == "svi":
        svi = SVI(model, guide, optax.adam(0.1), loss=rws_jax.ReweightedWakeSleep(**options))
        assert svi.run(jax.random.key(0), 2, x, y, progress_bar=False).params["loc"].shape == (3,)
        return
    rws = rws_jax.make_step(model, guide, **options)
    state, info = rws.step(rws.init(jax.random.key(0), x, y), x, y)
    assert info.wake_theta_loss is info.theta_grad_norm is None
    params = rws.get_params(state, x, y)
    assert params.keys() == {"loc"}
    draws = Predictive(guide, params=params, num_samples=4)(jax.random.key(1), x, y)
    predicted = Predictive(model, posterior_samples=draws)(jax.random.key(2), x, None)["y"]
    assert predicted.shape == (4, 5)
