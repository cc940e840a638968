"""`make_step` with the options of the losses and with its own: each equals what the losses say of it."""

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import seed
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

import rws_jax
from tests import models
from tests.training.test_step import again, gradients_of

DATA = models.BINARY_DATA
SCALE = {"theta_optimizer": optax.scale(1.0), "phi_optimizer": optax.scale(1.0)}


def uniform_guide(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z1", dist.Bernoulli(0.5))
        numpyro.sample("z2", dist.Bernoulli(0.5))


def constrained(theta):
    return {**theta, "p1": jax.nn.sigmoid(theta["p1"])}


def step_keys(state, num, phi_steps=1):
    """Keys of all updates of the next step; each seeds `num` programs."""
    _, last, *first = jax.random.split(jax.random.clone(state.rng_key), 2 if phi_steps == 1 else 3)
    updates = [*(key for parent in first for key in jax.random.split(parent, phi_steps - 1)), last]
    return [list(jax.random.split(key, num)) for key in updates]


OPTIONS = {
    "control_variate": {"control_variate": False},
    "defensive": {"defensive": 0.4},
    "defensive_guide": {"defensive": 0.4, "defensive_guide": uniform_guide},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("control_variate", marks=pytest.mark.slow),
        "defensive_guide",
        pytest.param("defensive", marks=pytest.mark.slow),
    ],
)
def test_options_are_passed_on_to_the_losses(name):
    """The same keys are remade here, so the comparison is exact; and each option makes a difference."""
    options = OPTIONS[name]
    rws = rws_jax.make_step(models.binary_model, models.binary_guide, num_particles=4, **SCALE, **options)
    state = rws.init(jax.random.key(0), DATA)
    theta_grad, phi_grad, info = gradients_of(rws, state, DATA)

    keys = step_keys(state, 5 if "defensive_guide" in options else 4)[0]
    common = {"num_particles": 4} | {k: v for k, v in options.items() if k.startswith("defensive")}
    if "defensive_guide" in options:
        common["defensive_guide"] = seed(uniform_guide, keys[4])
    programs_ = seed(models.binary_model, keys[0]), seed(models.binary_guide, keys[1])
    own = {k: v for k, v in options.items() if k == "control_variate"}
    theta_loss = lambda theta: rws_jax.wake_theta_loss(constrained(theta), dict(state.phi), *programs_, DATA, **common)
    phi_loss = lambda phi: rws_jax.wake_phi_loss(constrained(dict(state.theta)), phi, *programs_, DATA, **common, **own)
    expected = (
        jax.jit(jax.value_and_grad(theta_loss))(dict(state.theta)),
        jax.jit(jax.value_and_grad(phi_loss))(dict(state.phi)),
    )
    found = (info.wake_theta_loss, theta_grad), (info.wake_phi_loss, phi_grad)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    plain = rws_jax.make_step(models.binary_model, models.binary_guide, num_particles=4, **SCALE)
    assert not jnp.allclose(gradients_of(plain, state, DATA)[1]["a"], phi_grad["a"], rtol=1e-3)


@pytest.mark.floors
def test_dreg_is_passed_on_to_wake_phi():
    rws = rws_jax.make_step(models.one_model, models.one_guide, num_particles=4, gradient="dreg", **SCALE)
    state = rws.init(jax.random.key(0), 1.3)
    theta_grad, phi_grad, info = gradients_of(rws, state, 1.3)
    keys = step_keys(state, 4)[0]
    programs_ = seed(models.one_model, keys[0]), seed(models.one_guide, keys[1])
    loss = lambda t, f: rws_jax.wake_phi_loss(t, f, *programs_, 1.3, num_particles=4, gradient="dreg")
    bound = lambda t, f: rws_jax.wake_theta_loss(t, f, *programs_, 1.3, num_particles=4)
    expected = jax.jit(lambda *params: (jax.value_and_grad(loss, argnums=1)(*params), jax.grad(bound)(*params)))
    (value, grad), theta_expected = expected(dict(state.theta), dict(state.phi))
    chex.assert_trees_all_close((info.wake_phi_loss, phi_grad), (value, grad), rtol=1e-5)
    chex.assert_trees_all_close(theta_grad, theta_expected, rtol=1e-5)


@pytest.mark.slow
def test_several_guide_updates_are_those_of_as_many_steps():
    """Three updates of the guide, with fresh particles each; the model's takes those of the last."""
    count = 0

    def model(x):
        nonlocal count
        count += 1
        models.binary_model(x)

    phi_optimizer = optax.adam(0.05)
    rws = rws_jax.make_step(
        model, models.binary_guide, num_particles=4, insomnia=0.7, phi_steps=3,
        theta_optimizer=optax.sgd(0.1), phi_optimizer=phi_optimizer,
    )  # fmt: skip
    state = rws.init(jax.random.key(0), DATA)
    after, info = rws.step(again(state), DATA)
    traced = count
    for _ in range(3):
        _, _ = rws.step(again(after), DATA)
    assert count == traced
    phi, opt_state = dict(state.phi), state.phi_opt_state
    for keys in step_keys(state, 4, phi_steps=3):
        before = phi

        def loss(phi, keys=keys):
            theta, options = constrained(dict(state.theta)), {"num_particles": 4}
            wake = seed(models.binary_model, keys[0]), seed(models.binary_guide, keys[1])
            sleep = seed(models.binary_model, keys[2]), seed(models.binary_guide, keys[3])
            wake_loss = rws_jax.wake_phi_loss(theta, phi, *wake, DATA, **options)
            return 0.7 * wake_loss + 0.3 * rws_jax.sleep_phi_loss(theta, phi, *sleep, DATA, **options)

        value, grads = jax.jit(jax.value_and_grad(loss))(phi)
        updates, opt_state = phi_optimizer.update(grads, opt_state, phi)
        phi = optax.apply_updates(phi, updates)
    chex.assert_trees_all_close((dict(after.phi), after.phi_opt_state), (phi, opt_state), rtol=1e-4, atol=1e-5)
    assert jnp.allclose(info.phi_loss, value, rtol=1e-5)
    assert int(after.phi_opt_state[0].count) == 3
    wake = seed(models.binary_model, keys[0]), seed(models.binary_guide, keys[1])
    bound = lambda theta: rws_jax.wake_theta_loss(constrained(theta), before, *wake, DATA, num_particles=4)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, dict(state.theta), jax.jit(jax.grad(bound))(dict(state.theta)))
    chex.assert_trees_all_close(dict(after.theta), expected, rtol=1e-5, atol=1e-6)
    assert int(after.step) == 1


@pytest.mark.parametrize("where", ["first", "last"])
def test_one_bad_guide_update_undoes_all_of_the_step(where):
    """The update is NaN where the guide's own count of updates says so."""
    bad_count = {"first": 0, "last": 2}[where]
    counting = optax.scale_by_schedule(lambda count: jnp.where(count == bad_count, jnp.nan, 0.1))
    rws = rws_jax.make_step(models.binary_model, models.binary_guide, phi_steps=3, phi_optimizer=counting)
    state = rws.init(jax.random.key(0), DATA)
    after, info = rws.step(state, DATA)
    assert not bool(info.finite)
    chex.assert_trees_all_equal(after[:4], state[:4])


# Parameters that both programs share


def tied_model(x):
    weight = numpyro.param("weight", jnp.array([0.5, -1.0]))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(weight[z], numpyro.param("scale", 1.0)), obs=x)


def tied_guide(x):
    weight = numpyro.param("weight", jnp.array([0.5, -1.0]))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=x * (weight[1] - weight[0]) + numpyro.param("bias", 0.1)))


@pytest.mark.parametrize("insomnia", [1.0, 0.5])
def test_shared_parameters_take_the_sum_of_both_gradients(insomnia):
    x = jnp.array([0.3, -0.8, 1.5])
    rws = rws_jax.make_step(tied_model, tied_guide, num_particles=4, insomnia=insomnia, shared_params=True, **SCALE)
    state = rws.init(jax.random.key(0), x)
    assert state.theta.keys() == {"weight", "scale"}
    assert state.phi.keys() == {"bias"}
    theta_grad, phi_grad, _ = gradients_of(rws, state, x)

    keys = step_keys(state, 4)[0]
    wake = seed(tied_model, keys[0]), seed(tied_guide, keys[1])
    sleep = seed(tied_model, keys[2]), seed(tied_guide, keys[3])
    phi = {"weight": state.theta["weight"], **state.phi}
    bound = lambda theta: rws_jax.wake_theta_loss(theta, phi, *wake, x, num_particles=4)

    def phi_loss(phi):
        wake_loss = rws_jax.wake_phi_loss(dict(state.theta), phi, *wake, x, num_particles=4)
        sleep_loss = rws_jax.sleep_phi_loss(dict(state.theta), phi, *sleep, x, num_particles=4)
        return insomnia * wake_loss + (1 - insomnia) * sleep_loss

    of_theta, of_phi = jax.jit(jax.grad(bound))(dict(state.theta)), jax.jit(jax.grad(phi_loss))(phi)
    expected = {"weight": of_theta["weight"] + of_phi["weight"], "scale": of_theta["scale"]}
    chex.assert_trees_all_close(theta_grad, expected, rtol=1e-5)
    chex.assert_trees_all_close(phi_grad, {"bias": of_phi["bias"]}, rtol=1e-5)
    assert all(jnp.all(jnp.abs(g["weight"]) > 1e-3) for g in (of_theta, of_phi))
    assert rws.get_params(state, x).keys() == {"weight", "scale", "bias"}


# Arguments of programs that have names of ours


def test_programs_may_have_arguments_named_as_those_of_the_package():
    def model(state, theta, rng_key):
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(theta, 1.0))
            numpyro.sample("x", dist.Normal(z, rng_key), obs=state)

    def guide(state, theta, rng_key):
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0) + state, 1.0))

    x = jnp.array([0.3, -0.8, 1.5])
    rws = rws_jax.make_step(model, guide)
    by_name = {"state": x, "theta": 0.5, "rng_key": 2.0}
    state = rws.init(jax.random.key(0), **by_name)
    after, info = rws.step(again(state), **by_name)
    other, by_position = rws.step(state, x, 0.5, 2.0)
    chex.assert_trees_all_close((after.phi, info), (other.phi, by_position))
    assert rws.get_params(after, **by_name).keys() == {"m"}
    loss = lambda *args, **kwargs: rws_jax.wake_theta_loss(
        {}, dict(state.phi), seed(model, 0), seed(guide, 1), *args, num_particles=3, **kwargs
    )
    assert jax.jit(loss)(**by_name) == jax.jit(loss)(x, 0.5, 2.0)


@pytest.mark.floors
@pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
@pytest.mark.parametrize("autoguide", [pytest.param(AutoNormal, marks=pytest.mark.slow), AutoDiagonalNormal])
def test_automatic_guides_train_in_wake_by_either_gradient(autoguide):
    """Also those that draw all latents through one site; nothing is warned of, and no draw leaves the support."""

    def model(x):
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        with numpyro.plate("data", 3):
            numpyro.sample("x", dist.Normal(weights, scale), obs=x)

    x, infos = jnp.array([0.5, 0.2, 0.2]), []
    for gradient in ("score", "dreg"):
        rws = rws_jax.make_step(model, autoguide(model), num_particles=5, gradient=gradient)
        _, info = rws.step(rws.init(jax.random.key(0), x), x)
        infos.append(info)
        assert bool(info.finite)
        assert int(info.num_dead_particles) == 0
    assert jnp.allclose(infos[0].wake_phi_loss, infos[1].wake_phi_loss, rtol=1e-5)
    assert infos[0].phi_grad_norm != infos[1].phi_grad_norm
