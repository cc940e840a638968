"""`make_step`: the state, the info, what is computed, and that nothing bad gets into the parameters."""

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import export
from numpyro.handlers import seed
from numpyro.infer import Predictive

import rws_jax
from tests import models
from tests.oracles import draw, programs_of

DATA = models.BINARY_DATA


def make(**options):
    return rws_jax.make_step(models.binary_model, models.binary_guide, **{"num_particles": 4, **options})


def gradients_of(rws, state, *args):
    """Gradients that a step takes, read off an optimizer that adds them to the parameters."""
    new, info = rws.step(again(state), *args)
    new, state = new.plain, state.plain
    subtract = lambda new, old: jax.tree.map(jnp.subtract, new, old)
    return subtract(new.theta, state.theta), subtract(new.phi, state.phi), info


def step_keys(state):
    """The keys that the next step seeds programs with: wake model and guide, sleep model and guide."""
    return lambda i: jax.random.split(jax.random.split(jax.random.clone(state.rng_key))[1], 4)[i]


def again(state):
    """A copy, to take the same step once more."""
    return state._replace(rng_key=jax.random.clone(state.rng_key))


@pytest.mark.parametrize(
    "insomnia", [pytest.param(0.0, marks=pytest.mark.slow), 0.3, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_a_step_takes_the_gradients_of_the_three_losses(insomnia):
    """Seeds of the step are re-made here, so the comparison is exact."""
    rws = make(
        insomnia=insomnia, num_sleep_particles=3, theta_optimizer=optax.scale(1.0), phi_optimizer=optax.scale(1.0)
    )
    state = rws.init(jax.random.key(0), DATA)
    theta_grad, phi_grad, info = gradients_of(rws, state, DATA)

    keys = step_keys(state)
    wake = lambda: (seed(models.binary_model, keys(0)), seed(models.binary_guide, keys(1)))
    sleep = lambda: (seed(models.binary_model, keys(2)), seed(models.binary_guide, keys(3)))
    constrain = lambda theta: {**theta, "p1": jax.nn.sigmoid(theta["p1"])}

    def theta_loss(theta):
        return rws_jax.wake_theta_loss(constrain(theta), dict(state.phi), *wake(), DATA, num_particles=4)

    def phi_losses(phi):
        theta = constrain(dict(state.theta))
        wake_loss = rws_jax.wake_phi_loss(theta, phi, *wake(), DATA, num_particles=4)
        sleep_loss = rws_jax.sleep_phi_loss(theta, phi, *sleep(), DATA, num_particles=3)
        return insomnia * wake_loss + (1 - insomnia) * sleep_loss, (wake_loss, sleep_loss)

    theta_value, theta_expected = jax.jit(jax.value_and_grad(theta_loss))(dict(state.theta))
    phi_expected = jax.jit(jax.value_and_grad(phi_losses, has_aux=True))(dict(state.phi))
    (phi_value, (wake_loss, sleep_loss)), phi_expected = phi_expected
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    chex.assert_trees_all_close(theta_grad, theta_expected, **tolerance)
    chex.assert_trees_all_close(phi_grad, phi_expected, **tolerance)
    assert jnp.allclose(info.wake_theta_loss, theta_value, **tolerance)
    assert jnp.allclose(info.phi_loss, phi_value, **tolerance)
    assert jnp.allclose(info.theta_grad_norm, optax.tree.norm(theta_expected), **tolerance)
    assert jnp.allclose(info.phi_grad_norm, optax.tree.norm(phi_expected), **tolerance)
    assert jnp.allclose(info.insomnia, insomnia)
    assert bool(info.finite)
    for value, expected, computed in (
        (info.wake_phi_loss, wake_loss, insomnia > 0),
        (info.sleep_phi_loss, sleep_loss, insomnia < 1),
    ):
        assert jnp.allclose(value, expected, **tolerance) if computed else value is None


def test_effective_sample_size_of_the_step_is_that_of_its_particles():
    """With the posterior as guide every weight is equal: ESS = K in every unit."""

    def model(x):
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(x / 2 + numpyro.param("m", 0.0), jnp.sqrt(0.5)))

    x = jnp.array([0.5, -1.0, 2.0])
    rws = rws_jax.make_step(model, guide, num_particles=8)
    _, info = rws.step(rws.init(jax.random.key(0), x), x)
    assert jnp.allclose(jnp.array([info.ess_mean, info.ess_min]), 8.0, rtol=1e-5)
    assert info.theta_grad_norm is None
    worse = rws.init(jax.random.key(0), x)._replace(phi={"m": jnp.array(3.0)})
    _, info = rws.step(worse, x)
    assert 1.0 <= info.ess_min < info.ess_mean < 8.0


def test_pure_sleep_without_model_parameters_computes_no_wake():
    def model(x=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x=None):
        numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0) * x, numpyro.param("s", 1.0)))

    rws = rws_jax.make_step(
        model, guide, insomnia=0.0, num_particles=1, num_sleep_particles=50, observed_sites=("x",),
        phi_optimizer=optax.adam(0.05), model_has_params=False,
    )  # fmt: skip
    state = rws.init(jax.random.key(0))
    state, infos = jax.lax.scan(lambda s, _: rws.step(s), state, None, length=500)
    absent = {"wake_theta_loss", "wake_phi_loss", "ess_mean", "ess_min", "num_dead_units", "num_dead_particles"}
    absent |= {"num_paths", "num_compiled", "num_unjitted"}  # of programs that branch in Python
    absent |= {"step", "held_out"}  # of evaluations
    assert {name for name, value in infos._asdict().items() if value is None} == absent | {"theta_grad_norm"}
    params = rws.get_params(state)
    assert jnp.allclose(params["a"], 0.5, atol=0.05)  # E[z | x] = x / 2
    assert jnp.allclose(params["s"], jnp.sqrt(0.5), atol=0.05)


def test_insomnia_schedule_follows_the_step_count():
    rws = make(insomnia=optax.linear_schedule(1.0, 0.0, 4))
    state = rws.init(jax.random.key(0), DATA)
    _, infos = jax.lax.scan(lambda s, _: rws.step(s, DATA), state, None, length=6)
    assert infos.insomnia.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    mixed = infos.insomnia * infos.wake_phi_loss + (1 - infos.insomnia) * infos.sleep_phi_loss
    assert jnp.allclose(infos.phi_loss, mixed, rtol=1e-6)


def test_insomnia_schedule_that_leaves_its_range_stops_the_update_and_says_so():
    rws = make(insomnia=lambda step: 1.0 + 0.5 * step)
    state = rws.init(jax.random.key(0), DATA)
    state, info = rws.step(state, DATA)
    assert bool(info.finite)
    after, info = rws.step(state, DATA)
    assert not bool(info.finite)
    assert jnp.isnan(info.insomnia)
    chex.assert_trees_all_equal(after[:4], state[:4])


# Optimizers, transformations, tracing


OPTIMIZERS = {
    "adam": lambda: optax.adam(1e-2),
    "schedule": lambda: optax.adam(optax.cosine_decay_schedule(1e-2, 100)),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-2, momentum=0.9)),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "frozen": optax.set_to_zero,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_traced_once_and_updates_as_by_hand(name):
    count = 0

    def model(x):
        nonlocal count
        count += 1
        models.binary_model(x)

    optimizer = OPTIMIZERS[name]()
    rws = rws_jax.make_step(model, models.binary_guide, theta_optimizer=optimizer, phi_optimizer=optimizer)
    state = rws.init(jax.random.key(0), DATA)
    state, _ = rws.step(state, DATA)
    traced = count
    for _ in range(99):
        state, _ = rws.step(state, DATA)
    assert count == traced
    assert int(state.step) == 100

    plain = make(num_particles=2, theta_optimizer=optax.scale(1.0), phi_optimizer=optax.scale(1.0))
    grads = gradients_of(
        plain, state._replace(theta_opt_state=optax.ScaleState(), phi_opt_state=optax.ScaleState()), DATA
    )
    after, _ = rws.step(again(state), DATA)
    for grad, old, opt_state, new in (
        (grads[0], dict(state.theta), state.theta_opt_state, dict(after.theta)),
        (grads[1], dict(state.phi), state.phi_opt_state, dict(after.phi)),
    ):
        updates, _ = optimizer.update(grad, opt_state, old)
        chex.assert_trees_all_close(new, optax.apply_updates(old, updates), rtol=1e-4, atol=1e-6)


@pytest.mark.floors
def test_theta_and_phi_have_optimizers_of_their_own():
    rws = make(theta_optimizer=optax.set_to_zero(), phi_optimizer=optax.sgd(0.1))
    state = rws.init(jax.random.key(0), DATA)
    after, _ = rws.step(state, DATA)
    chex.assert_trees_all_equal(after.theta, state.theta)
    assert not jnp.allclose(after.phi["a"], state.phi["a"])


def newcomer_model(x):
    weight = numpyro.param("weight", lambda key: 0.1 * jax.random.normal(key, (2, 5)))
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 2)), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight, scale).to_event(1), obs=x)


def newcomer_guide(x):
    weight = numpyro.param("guide_weight", lambda key: 0.1 * jax.random.normal(key, (5, 2)))
    scale = numpyro.param("guide_scale", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(x @ weight, scale).to_event(1))


@pytest.mark.floors
def test_python_loop_scan_and_jit_give_equal_results():
    rws = rws_jax.make_step(newcomer_model, newcomer_guide, num_particles=5, insomnia=0.5)
    x = jax.random.normal(jax.random.key(1), (10, 5))
    start = rws.init(jax.random.key(0), x)

    looped, losses = again(start), []
    for _ in range(20):
        looped, info = rws.step(looped, x)
        losses.append(info.wake_theta_loss)
    scanned, infos = jax.lax.scan(lambda state, _: rws.step(state, x), again(start), None, length=20)
    jitted, step = again(start), jax.jit(rws.step)
    for _ in range(20):
        jitted, _ = step(jitted, x)

    chex.assert_trees_all_close(looped._replace(rng_key=0), scanned._replace(rng_key=0), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(looped._replace(rng_key=0), jitted._replace(rng_key=0), rtol=1e-5, atol=1e-6)
    assert jnp.array_equal(jax.random.key_data(looped.rng_key), jax.random.key_data(scanned.rng_key))
    assert jnp.allclose(jnp.array(losses), infos.wake_theta_loss, rtol=1e-5)


def test_init_and_step_can_be_vmapped_over_seeds():
    rws = make()
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(rws.init, (0, None))(keys, DATA)
    after, infos = jax.vmap(rws.step, (0, None))(states, DATA)
    alone, _ = rws.step(rws.init(jax.random.split(jax.random.key(0), 3)[1], DATA), DATA)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], after.phi), alone.phi, rtol=1e-5)
    assert infos.wake_theta_loss.shape == (3,)


@pytest.mark.floors
@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "legacy"])
def test_state_goes_into_a_step_made_anew(key):
    """Nothing is stored on the side, as when a checkpoint is restored in a new process."""
    state = make().init(key(0), DATA)
    copy = jax.tree.map(jnp.array, again(state))
    first, second = make().step(again(state), DATA)[0], make().step(copy, DATA)[0]
    chex.assert_trees_all_equal(first._replace(rng_key=0), second._replace(rng_key=0))
    assert jnp.all(first.rng_key == second.rng_key)


def test_state_has_strong_float_types_from_python_numbers():
    def guide(x):
        a, b = numpyro.param("a", 1), numpyro.param("b", 2.0)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z1", dist.Bernoulli(logits=a * x + b))
            numpyro.sample("z2", dist.Bernoulli(0.5))

    state = rws_jax.make_step(models.binary_model, guide).init(jax.random.key(0), DATA)
    assert all(not leaf.weak_type for leaf in jax.tree.leaves((state.theta, state.phi, state.step)))
    assert state.phi["a"].dtype == jnp.asarray(0.0).dtype


@pytest.mark.floors
def test_step_lowers_for_three_platforms():
    rws = make(insomnia=0.5)
    state = rws.init(jax.random.PRNGKey(0), DATA)
    exported = export.export(jax.jit(rws.step), platforms=["cpu", "cuda", "tpu"])(state, DATA)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    found, expected = exported.call(state, DATA), rws.step(again(state), DATA)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    typed = rws.init(jax.random.key(0), DATA)
    assert export.export(jax.jit(rws.step), platforms=["cpu", "cuda", "tpu"])(typed, DATA).platforms


# Parameters


@pytest.mark.floors
def test_constrained_parameters_train_in_unconstrained_space():
    rws = make(theta_optimizer=optax.sgd(1.0))
    state = rws.init(jax.random.key(0), DATA)
    assert jnp.allclose(state.theta["p1"], jnp.log(0.3 / 0.7))
    params = rws.get_params(state, DATA)
    chex.assert_trees_all_close(params, models.BINARY_THETA | models.BINARY_PHI, rtol=1e-6)
    for _ in range(50):
        state, _ = rws.step(state, DATA)
    assert 0.0 < rws.get_params(state, DATA)["p1"] < 1.0


@pytest.mark.floors
def test_get_params_is_what_predictive_takes():
    rws = make()
    params = rws.get_params(rws.init(jax.random.key(0), DATA), DATA)
    posterior = Predictive(models.binary_guide, params=params, num_samples=7)(jax.random.key(1), DATA)
    assert posterior["z1"].shape == (7, 3)
    draws = Predictive(models.binary_model, posterior, params=params)(jax.random.key(2), DATA)
    assert draws["x"].shape == (7, 3)


@pytest.mark.floors
def test_a_parameter_fixed_by_a_handler_is_not_trained():
    frozen = numpyro.handlers.substitute(models.binary_model, data={"p1": jnp.array(0.6)})
    rws = rws_jax.make_step(frozen, models.binary_guide)
    state = rws.init(jax.random.key(0), DATA)
    assert set(state.theta) == {"t2", "tx"}
    _, info = rws.step(again(state), DATA)
    keys = step_keys(state)
    theta = models.BINARY_THETA | {"p1": jnp.array(0.6)}
    fixed = seed(models.binary_model, keys(0)), seed(models.binary_guide, keys(1))
    expected = rws_jax.wake_theta_loss(theta, models.BINARY_PHI, *fixed, DATA)
    assert jnp.allclose(info.wake_theta_loss, expected, rtol=1e-5)
    seeded = seed(frozen, keys(0)), seed(models.binary_guide, keys(1))
    assert jnp.allclose(rws_jax.wake_theta_loss({**theta, "p1": 0.1}, models.BINARY_PHI, *seeded, DATA), expected)


# Support and non-finite steps


def narrow_model(x):
    rate = numpyro.param("rate", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Exponential(rate))
        numpyro.sample("x", dist.Normal(0.0, z), obs=x)  # a negative z would give NaN here


def wide_guide(x):
    loc = numpyro.param("loc", jnp.array(0.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(loc + 0.0 * x, 1.0))


def test_particles_outside_of_the_support_weigh_nothing():
    """Half of the particles are negative; loss and gradients are those of the others, with K as divisor."""
    x, num = jnp.array([0.5, -1.0]), 6
    theta, phi = {"rate": jnp.array(1.5)}, {"loc": jnp.array(0.1)}
    make_programs = lambda: (seed(narrow_model, 0), seed(wide_guide, 1))
    z = draw(programs_of(*make_programs(), theta, phi, x), num).latents["z"]
    assert jnp.any(z < 0)
    assert jnp.all(jnp.any(z > 0, axis=0))

    def by_hand(theta, phi, kind):
        inside = z > 0
        safe = jnp.where(inside, z, 1.0)
        log_p = dist.Exponential(theta["rate"]).log_prob(safe) + dist.Normal(0.0, safe).log_prob(x[None])
        log_q = dist.Normal(phi["loc"], 1.0).log_prob(z)
        weight = jnp.where(inside, jnp.exp(log_p - jax.lax.stop_gradient(log_q)), 0.0)
        if kind == "theta":
            return -jnp.log(weight.mean(axis=0)).sum()
        return -(jax.lax.stop_gradient(weight / weight.sum(axis=0)[None]) * log_q).sum()

    for kind, loss in (("theta", rws_jax.wake_theta_loss), ("phi", rws_jax.wake_phi_loss)):
        options = {} if kind == "theta" else {"control_variate": False}
        package = lambda t, f, loss=loss, options=options: loss(t, f, *make_programs(), x, num_particles=num, **options)
        found = jax.jit(jax.value_and_grad(package, argnums=(0, 1)))(theta, phi)
        hand = lambda t, f, kind=kind: by_hand(t, f, kind)
        expected = jax.jit(jax.value_and_grad(hand, argnums=(0, 1)))(theta, phi)
        expected[1][1 if kind == "theta" else 0].update({"loc" if kind == "theta" else "rate": jnp.array(0.0)})
        chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_a_dead_unit_is_counted_and_does_not_touch_the_others():
    def guide(x):
        loc = numpyro.param("loc", jnp.array([2.0, -50.0]))
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Normal(loc, 0.1))

    x = jnp.array([0.5, -1.0])
    rws = rws_jax.make_step(narrow_model, guide, theta_optimizer=optax.sgd(0.1), phi_optimizer=optax.sgd(0.1))
    state = rws.init(jax.random.key(0), x)
    after, info = rws.step(again(state), x)
    assert int(info.num_dead_units) == 1
    assert bool(info.finite)
    assert info.ess_min == 0.0
    assert after.phi["loc"][1] == -50.0
    assert after.phi["loc"][0] != 2.0
    programs_ = programs_of(narrow_model, seed(guide, step_keys(state)(1)), {}, state.phi, x)
    z = draw(programs_, 2).latents["z"][:, 0]
    log_w = dist.Exponential(1.0).log_prob(z) + dist.Normal(0.0, z).log_prob(0.5) - dist.Normal(2.0, 0.1).log_prob(z)
    assert jnp.allclose(info.wake_theta_loss, -jax.nn.logsumexp(log_w) + jnp.log(2.0), rtol=1e-5)


def test_with_all_units_dead_the_state_stays():
    rws = rws_jax.make_step(narrow_model, wide_guide)
    x = jnp.array([0.5, -1.0])
    state = rws.init(jax.random.key(0), x)
    state, _ = rws.step(state, x)  # Adam has momentum now: a zero gradient would move the parameters
    state = state._replace(phi={"loc": jnp.array(-50.0)})
    after, info = rws.step(state, x)
    assert int(info.num_dead_units) == 2
    assert info.wake_theta_loss == jnp.inf
    assert not bool(info.finite)
    chex.assert_trees_all_equal(after[:4], state[:4])


@pytest.mark.parametrize("where", ["data", "theta", "phi"])
def test_non_finite_steps_leave_the_state_and_the_next_draws_anew(where):
    rws = rws_jax.make_step(newcomer_model, newcomer_guide)
    x = jax.random.normal(jax.random.key(1), (10, 5))
    state = rws.init(jax.random.key(0), x)
    state, _ = rws.step(state, x)
    bad, bad_x = state, x
    if where == "data":
        bad_x = x.at[0, 0].set(jnp.nan)
    elif where == "theta":
        bad = state._replace(theta=state.theta | {"weight": state.theta["weight"].at[0, 0].set(jnp.inf)})
    else:
        bad = state._replace(phi=state.phi | {"guide_weight": state.phi["guide_weight"].at[0, 0].set(jnp.nan)})
    after, info = rws.step(again(bad), bad_x)
    assert not bool(info.finite)
    chex.assert_trees_all_equal(after[:4], bad[:4])
    assert int(after.step) == 2
    assert not jnp.array_equal(jax.random.key_data(after.rng_key), jax.random.key_data(bad.rng_key))
    _, info = rws.step(after._replace(theta=state.theta, phi=state.phi), x)
    assert bool(info.finite)


@pytest.mark.floors
def test_an_update_that_overflows_is_not_taken():
    rws = make(theta_optimizer=optax.chain(*[optax.scale(1e38)] * 9))
    state = rws.init(jax.random.key(0), DATA)
    after, info = rws.step(state, DATA)
    assert not bool(info.finite)
    chex.assert_trees_all_equal(after[:4], state[:4])


def test_dreams_rescue_a_guide_that_has_left_the_support():
    """Every particle of wake is dead; sleep goes on, and theta waits until wake is alive again."""

    def model(x):
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z + numpyro.param("shift", 0.0), 0.3), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(numpyro.param("m", -9.0) + 0.0 * x, 0.5))

    rws = rws_jax.make_step(model, guide, insomnia=0.5, phi_optimizer=optax.adam(0.1))
    state = rws.init(jax.random.key(0), 0.5)
    after, info = rws.step(state, 0.5)
    assert int(info.num_dead_units) == 1
    assert info.wake_theta_loss == jnp.inf
    assert bool(info.finite)
    chex.assert_trees_all_equal((after.theta, after.theta_opt_state), (state.theta, state.theta_opt_state))
    assert after.phi["m"] != state.phi["m"]
    last, infos = jax.lax.scan(lambda s, _: rws.step(s, 0.5), after, length=300)
    assert int(infos.num_dead_units[-50:].sum()) < 50
    assert jnp.abs(last.phi["m"] - 0.5) < 0.3


def test_a_gradient_that_would_freeze_an_optimizer_is_not_taken():
    """Squared, it is infinite in float32: Adam's second moment would be infinite for ever."""

    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Laplace(z + 1e22 * numpyro.param("w", 0.0), 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))

    rws = rws_jax.make_step(model, guide)
    state = rws.init(jax.random.key(0), 1.0)
    after, info = rws.step(state, 1.0)
    if jnp.asarray(0.0).dtype == jnp.float32:
        assert not bool(info.finite)
        chex.assert_trees_all_equal(after[:4], state[:4])


def test_an_optimizer_cannot_hide_a_gradient_that_is_not_finite():
    """The loss is finite, its gradient is not, and clipping would make it look like an ordinary step."""

    def model(x):
        w = numpyro.param("w", 0.0)
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z + jnp.sqrt(jnp.abs(w)), 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))

    hiding = optax.chain(optax.zero_nans(), optax.clip(1.0), optax.sgd(0.1))
    rws = rws_jax.make_step(model, guide, theta_optimizer=hiding)
    state = rws.init(jax.random.key(0), 1.0)
    after, info = rws.step(state, 1.0)
    assert jnp.isfinite(info.wake_theta_loss)
    assert not bool(info.finite)
    chex.assert_trees_all_equal(after.phi, state.phi)
