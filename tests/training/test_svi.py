"""`ReweightedWakeSleep` in NumPyro's `SVI`: what `make_step` does, and what only `SVI` asks for."""

from functools import cache

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.contrib.control_flow import cond
from numpyro.contrib.module import flax_module
from numpyro.handlers import infer_config, seed, substitute
from numpyro.infer import SVI, Predictive
from numpyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

import rws_jax
from rws_jax import ReweightedWakeSleep
from rws_jax import __main__ as demo
from rws_jax.execution.branching.errors import BranchingSiteError
from tests import models
from tests.checks import test_errors
from tests.checks.test_errors import check
from tests.oracles import OPTIMISED
from tests.test_options import uniform_guide

pytestmark = pytest.mark.filterwarnings("ignore:the guide .* reads no data")
DATA = models.BINARY_DATA
ADAMS = {"theta": optax.adam(0.03), "phi": optax.adam(0.1)}


def two_optimizers(*theta):
    """Theta are the model's parameters, by name."""
    return optax.multi_transform(ADAMS, lambda params: {n: "theta" if n in theta else "phi" for n in params})


def binary_svi(**options):
    optimizer = two_optimizers("p1", "t2", "tx")
    return SVI(models.binary_model, models.binary_guide, optimizer, loss=ReweightedWakeSleep(**options))


def train_both(model, guide, theta, options, *args, num_steps=3, **step_options):
    """Parameters and losses by `SVI`, parameters and infos by `make_step`, from one key."""
    svi = SVI(model, guide, two_optimizers(*theta), loss=ReweightedWakeSleep(**options))
    result = svi.run(jax.random.key(0), num_steps, *args, progress_bar=False)
    adams = {"theta_optimizer": ADAMS["theta"], "phi_optimizer": ADAMS["phi"]}
    rws = rws_jax.make_step(model, guide, **adams, **options, **step_options)
    state = rws.init(jax.random.key(0), *args)
    state, infos = jax.lax.scan(lambda state, _: rws.step(state, *args), state, length=num_steps)
    return (result.params, result.losses), (rws.get_params(state, *args), infos)


# One update is one step


def blind_model(x=None):
    """A model of pure sleep: it runs without data."""
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=x)


def blind_guide(x=None):
    slope = numpyro.param("slope", 0.0)
    with numpyro.plate("data", 3):
        numpyro.sample("z", dist.Normal(0.0 if x is None else slope * x, 1.0))  # SVI.init has no dream to show


BINARY = models.binary_model, models.binary_guide, ("p1", "t2", "tx"), (DATA,)
NORMAL = models.one_model, models.one_guide, ("mu",), (1.3,)
BLIND = blind_model, blind_guide, (), ()
shown = lambda data, *args: ((data["y"],), {})
negated = lambda data, x: ((1.0 - data["x"],), {})

# option -> programs, all options, and the row that these differ from in it
OVER_TWO_DEVICES = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("particles",)), PartitionSpec("particles"))
OPTIONS = {
    "default": (BINARY, {}, None),
    "num_particles": (BINARY, {"num_particles": 8}, "default"),
    "insomnia": (BINARY, {"insomnia": 0.5}, "default"),
    "pure sleep": (BINARY, {"insomnia": 0.0}, "insomnia"),
    "num_sleep_particles": (BINARY, {"insomnia": 0.5, "num_sleep_particles": 5}, "insomnia"),
    "control_variate": (BINARY, {"control_variate": False}, "default"),
    "defensive": (BINARY, {"num_particles": 8, "defensive": 0.5}, "num_particles"),
    "defensive_guide": (
        BINARY,
        {"num_particles": 8, "defensive": 0.5, "defensive_guide": uniform_guide},
        "defensive",
    ),
    "chunk_size": (BINARY, {"num_particles": 5, "chunk_size": 2}, None),
    "particle_sharding": (BINARY, {"num_particles": 8, "particle_sharding": OVER_TWO_DEVICES}, None),
    "score": (NORMAL, {}, None),
    "gradient": (NORMAL, {"gradient": "dreg"}, "score"),
    "simulated_data_to_args": (BINARY, {"insomnia": 0.0, "simulated_data_to_args": negated}, "pure sleep"),
    "observed_sites": (
        BLIND,
        {"insomnia": 0.0, "num_particles": 5, "observed_sites": ("y",), "simulated_data_to_args": shown},
        None,
    ),
    "model_has_params": (
        BLIND,
        {"insomnia": 0.0, "model_has_params": False, "observed_sites": ("y",), "simulated_data_to_args": shown},
        None,
    ),
}


@cache
def trained(name):
    (model, guide, theta, args), options, _ = OPTIONS[name]
    return train_both(model, guide, theta, options, *args)


FAST = "default", "insomnia", "score", "gradient", "observed_sites", "model_has_params"


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in OPTIONS])
def test_an_update_is_a_step_with_every_option(name):
    (params, losses), (expected, infos) = trained(name)
    wake_theta_loss = 0.0 if infos.wake_theta_loss is None else infos.wake_theta_loss
    assert params.keys() == expected.keys()
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)
    assert jnp.allclose(losses, wake_theta_loss + infos.phi_loss, rtol=1e-5)
    theta, other = OPTIONS[name][0][2], OPTIONS[name][2]
    if other is not None:  # each option makes a difference to the guide
        others = trained(other)[0][0]
        assert any(not jnp.allclose(others[n], params[n], atol=1e-3) for n in params if n not in theta)


def test_shared_parameters_are_trained_on_both_losses():
    def model(x):
        z = numpyro.sample("z", dist.Normal(numpyro.param("both", 0.2), 1.0))
        numpyro.sample("x", dist.Normal(z + numpyro.param("own", 0.0), 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(numpyro.param("both", 0.2) + 0.5 * x, 1.0))

    options = {"num_particles": 5, "insomnia": 0.5, "shared_params": True}
    (params, _), (expected, _) = train_both(model, guide, ("both", "own"), options, 1.3)
    chex.assert_trees_all_close(params, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="occur in both") as error:
        ReweightedWakeSleep().losses(jax.random.key(0), params, model, guide, 1.3)
    check(error, ValueError, "['both']", "shared_params=True")


@pytest.mark.floors
@pytest.mark.usefixtures("allow_key_reuse")
def test_losses_come_as_a_pair_with_the_gradients_of_both():
    params = {**models.BINARY_THETA, **models.BINARY_PHI}
    loss = ReweightedWakeSleep(num_particles=4, insomnia=0.3, num_sleep_particles=5)
    keys = jax.random.split(jax.random.key(3), 4)
    wake, sleep = (
        lambda i=i: (seed(models.binary_model, keys[i]), seed(models.binary_guide, keys[i + 1])) for i in (0, 2)
    )

    def by_losses(params):
        wake_theta = rws_jax.wake_theta_loss(params, params, *wake(), DATA, num_particles=4)
        wake_phi = rws_jax.wake_phi_loss(params, params, *wake(), DATA, num_particles=4)
        sleep_phi = rws_jax.sleep_phi_loss(params, params, *sleep(), DATA, num_particles=5)
        pair = wake_theta, 0.3 * wake_phi + 0.7 * sleep_phi
        return sum(pair), pair

    @jax.jit
    def found():
        args = params, models.binary_model, models.binary_guide, DATA
        return [method(jax.random.key(3), *args) for method in (loss.loss, loss.losses, loss.loss_and_grads)]

    (total, pair), gradients = jax.jit(jax.value_and_grad(by_losses, has_aux=True))(params)
    chex.assert_trees_all_close(found(), [total, pair, (pair, gradients)], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("vectorize", [True, False])
def test_what_pure_sleep_does_not_compute_is_none(vectorize):
    """Nor is a second particle asked for then."""
    options = {"observed_sites": ("y",), "simulated_data_to_args": shown, "vectorize_particles": vectorize}
    loss = ReweightedWakeSleep(num_particles=1, insomnia=0.0, **options)
    params = {"slope": jnp.array(0.3)}
    wake_theta_loss, phi_loss = loss.losses(jax.random.key(0), params, blind_model, blind_guide)
    (again, _), grads = loss.loss_and_grads(jax.random.key(0), params, blind_model, blind_guide)
    assert wake_theta_loss is None
    assert again is None
    assert phi_loss == loss.loss(jax.random.key(0), params, blind_model, blind_guide)
    assert grads.keys() == params.keys()


@pytest.mark.floors
@pytest.mark.usefixtures("allow_key_reuse")  # what the next update will draw is looked at before
def test_info_is_that_of_a_step():
    """All of it but the norms of gradients, which it does not compute; jitted too."""
    options = {"num_particles": 5, "insomnia": 0.5}
    svi = binary_svi(**options)
    state = svi.init(jax.random.key(0), DATA)
    rws = rws_jax.make_step(models.binary_model, models.binary_guide, **options)
    _, expected = rws.step(rws.init(jax.random.key(0), DATA), DATA)
    programs = models.binary_model, models.binary_guide
    found = jax.jit(svi.loss.info, static_argnums=(2, 3))(
        jax.random.split(state.rng_key)[1], svi.get_params(state), *programs, DATA
    )
    expected = expected._replace(theta_grad_norm=None, phi_grad_norm=None)
    assert found.ess_mean is not None
    chex.assert_trees_all_close(found, expected, rtol=1e-5)
    assert [x.dtype for x in jax.tree.leaves(found)] == [x.dtype for x in jax.tree.leaves(expected)]


@pytest.mark.usefixtures("allow_key_reuse")  # the same key for all
def test_info_says_what_is_dead_and_has_none_of_what_was_not_computed():
    params, key = {"m": jnp.array(0.0), "loc": jnp.array(50.0)}, jax.random.key(0)
    for options, finite in (({}, False), ({"insomnia": 0.5}, True)):
        info = ReweightedWakeSleep(num_particles=5, **options).info(key, params, narrow_model, wide_guide, DATA)
        assert (int(info.num_dead_units), int(info.num_dead_particles), bool(info.finite)) == (3, 15, finite)
    options = {"observed_sites": ("y",), "simulated_data_to_args": shown}
    info = ReweightedWakeSleep(insomnia=0.0, **options).info(key, {"slope": jnp.array(0.3)}, blind_model, blind_guide)
    assert info.ess_mean is info.wake_theta_loss is info.wake_phi_loss is None
    assert info.phi_loss == info.sleep_phi_loss


def test_sites_that_are_not_said_to_be_data_are_not_dreamt():
    loss = ReweightedWakeSleep(insomnia=0.0, simulated_data_to_args=shown)
    with pytest.raises(ValueError, match="sleep has no data to dream") as error:
        loss.losses(jax.random.key(0), {"slope": jnp.array(0.3)}, blind_model, blind_guide)
    check(error, ValueError, "observed_sites=('x',)")


# What SVI does with it


@pytest.mark.floors
def test_the_progress_bar_changes_nothing(capsys):
    run = lambda bar: binary_svi(num_particles=5, insomnia=0.5).run(jax.random.key(0), 20, DATA, progress_bar=bar)
    with_bar, without = run(True), run(False)
    assert "20/20" in capsys.readouterr().err
    chex.assert_trees_all_close(
        (with_bar.params, with_bar.losses), (without.params, without.losses), rtol=1e-4, atol=1e-6
    )


def test_evaluate_is_the_loss_of_the_next_update():
    svi = binary_svi(num_particles=5, insomnia=0.5)
    state = svi.init(jax.random.key(0), DATA)
    value = jax.jit(svi.evaluate)(state._replace(rng_key=jax.random.clone(state.rng_key)), DATA)
    assert jnp.allclose(value, jax.jit(svi.update)(state, DATA)[1], rtol=1e-5)


def test_training_starts_from_init_params_also_where_programs_have_no_values():
    def guide(x):
        numpyro.sample("z", dist.Normal(numpyro.param("a") + numpyro.param("c", 0.5) * x, 0.8))

    svi = SVI(models.one_model, guide, optax.sgd(0.0), loss=ReweightedWakeSleep(num_particles=5))
    start = {"a": jnp.array(0.7), "c": jnp.array(-0.2)}
    result = svi.run(jax.random.key(0), 2, 1.3, progress_bar=False, init_params=start)
    assert {name: float(result.params[name]) for name in start} == pytest.approx({"a": 0.7, "c": -0.2})


def narrow_model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z + numpyro.param("m", 0.0), 1.0), obs=x)


def wide_guide(x):
    loc = numpyro.param("loc", 50.0)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(loc, 1.0))


def test_stable_updates_do_not_learn_from_particles_outside_of_the_support():
    """The loss is infinite, not made up; and no gradient is NaN, if only `update` is called."""
    svi = SVI(narrow_model, wide_guide, optax.adam(0.1), loss=ReweightedWakeSleep(num_particles=5))
    result = svi.run(jax.random.key(0), 3, DATA, progress_bar=False, stable_update=True)
    state, loss = jax.jit(svi.update)(svi.init(jax.random.key(0), DATA), DATA)
    assert jnp.all(jnp.isnan(result.losses))  # as SVI reports updates that it does not take
    assert loss == jnp.inf
    for params in (result.params, svi.get_params(state)):
        assert {name: float(value) for name, value in params.items()} == {"m": 0.0, "loc": 50.0}


@pytest.mark.filterwarnings("ignore:the guide 'wide_guide' reads no data")
def test_stable_updates_learn_from_dreams_where_no_particle_is_alive():
    loss = ReweightedWakeSleep(num_particles=5, insomnia=0.5)
    svi = SVI(narrow_model, wide_guide, optax.adam(0.5), loss=loss)
    result = svi.run(jax.random.key(0), 300, DATA, progress_bar=False, stable_update=True)
    assert bool(jnp.isfinite(result.losses).all())
    assert jnp.abs(result.params["loc"] - 0.5) < 0.3


def test_the_value_of_svi_is_that_of_a_parameter_also_under_substitute():
    """As with NumPyro's own losses; `make_step` takes a parameter that a handler has set as fixed."""
    model = substitute(models.one_model, {"mu": jnp.array(2.0)})
    svi = SVI(model, models.one_guide, optax.sgd(0.01), loss=ReweightedWakeSleep(num_particles=5))
    start = svi.init(jax.random.key(0), 1.3)
    assert svi.get_params(start)["mu"] == 2.0
    loss = lambda mu: ReweightedWakeSleep(num_particles=5).losses(
        jax.random.key(0), {"mu": mu, "a": 0.5, "c": 0.7}, model, models.one_guide, 1.3
    )[0]
    assert jax.grad(loss)(2.0) > 0.1


def test_programs_are_traced_once():
    traces = []

    def counted(x):
        traces.append(x)
        models.binary_model(x)

    svi = SVI(counted, models.binary_guide, optax.adam(0.1), loss=ReweightedWakeSleep(insomnia=0.5))
    state, update = svi.init(jax.random.key(0), DATA), jax.jit(svi.update)
    state, _ = update(state, DATA)
    num_traces = len(traces)
    for _ in range(3):
        state, _ = update(state, DATA)
    assert len(traces) == num_traces


@pytest.mark.floors
def test_predictive_takes_the_parameters():
    params = binary_svi().run(jax.random.key(0), 2, DATA, progress_bar=False).params
    draws = Predictive(models.binary_guide, params=params, num_samples=7)(jax.random.key(1), DATA)
    assert draws["z1"].shape == (7, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
@pytest.mark.parametrize(
    "autoguide", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoIAFNormal]
)
def test_automatic_guides_reach_a_gaussian_posterior_in_wake(autoguide):
    """z ~ N(0, 1), x | z ~ N(z, 1/4), twice: the posterior is N(4 x / 5, 1/5)."""
    x = jnp.array([1.3, -0.4])

    def model(x):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    guide = autoguide(model)
    svi = SVI(model, guide, optax.adam(0.02), loss=ReweightedWakeSleep(num_particles=50))
    params = svi.run(jax.random.key(0), 500, x, progress_bar=False).params
    z = guide.sample_posterior(jax.random.key(1), params, sample_shape=(4000,))["z"]
    assert jnp.all(jnp.abs(z.mean(axis=0) - 0.8 * x) < 0.05)
    assert jnp.all(jnp.abs(z.std(axis=0) - 0.2**0.5) < 0.05)


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize("autoguide", [AutoDelta, AutoLaplaceApproximation])
def test_guides_that_are_points_are_refused(autoguide):
    guide = autoguide(models.one_model)
    svi = SVI(models.one_model, guide, optax.adam(0.1), loss=ReweightedWakeSleep())
    with pytest.raises(ValueError, match="is a Delta") as error:
        svi.run(jax.random.key(0), 2, 1.3, progress_bar=False)
    check(error, ValueError, "AutoNormal")


@pytest.mark.slow
@pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
def test_svi_and_make_step_reach_the_same_evidence_on_the_digits():
    """Networks of different random starts, so within 5 standard errors over seeds; far from where training began."""
    train, held_out = (images[:300] for images in demo.load_digits())
    options, num_steps = {"num_particles": 5, "num_sleep_particles": 1, "insomnia": 0.5}, 100
    adam = optax.adam(1e-2)
    svi = SVI(demo.model, demo.guide, adam, loss=ReweightedWakeSleep(**options))
    rws = rws_jax.make_step(demo.model, demo.guide, theta_optimizer=adam, phi_optimizer=adam, **options)

    def by_step(rng_key):
        state = rws.init(rng_key, train)
        state, _ = jax.lax.scan(lambda state, _: rws.step(state, train), state, length=num_steps)
        return rws.get_params(state, train)

    by_svi = lambda rng_key: svi.run(rng_key, num_steps, train, progress_bar=False).params
    nll = lambda params: demo.held_out_nll(params, held_out[:100], num_particles=100)
    runs = [jax.jit(train_once, compiler_options=OPTIMISED) for train_once in (by_svi, by_step)]
    values = [[nll(run(jax.random.key(seed))) for seed in range(4)] for run in runs]
    mean, error = np.mean(values, axis=1), np.std(values, axis=1, ddof=1) / 4**0.5
    assert abs(mean[0] - mean[1]) < 5.0 * np.hypot(*error)
    assert np.max(values) < demo.independent_pixels_nll(train, held_out) - 2.0


# Annotations for enumeration


def annotated(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z1", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def annotated_guide(x):
    logit = numpyro.param("logit", 0.0)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z1", dist.Bernoulli(logits=logit), infer={"enumerate": "parallel"})


def test_annotations_for_enumeration_are_told_and_change_nothing():
    params = {"logit": jnp.array(0.4)}
    loss = ReweightedWakeSleep(num_particles=5)
    with pytest.warns(UserWarning, match="annotated for enumeration") as warned:
        found = loss.losses(jax.random.key(0), params, annotated, annotated_guide, DATA)
    assert [str(w.message).split(" is ")[0] for w in warned] == [
        "site 'z1' of the guide", "site 'z1' of the model"
    ]  # fmt: skip
    silent = ReweightedWakeSleep(num_particles=5, strict_enumeration_warning=False)
    again = silent.losses(jax.random.key(0), params, annotated, annotated_guide, DATA)
    bare = lambda program: infer_config(program, lambda site: {"enumerate": None})
    expected = loss.losses(jax.random.key(0), params, bare(annotated), bare(annotated_guide), DATA)
    assert found == again == expected


def test_a_model_made_for_enumeration_still_needs_a_guide():
    model = infer_config(annotated, lambda site: {"enumerate": "parallel"})  # NumPyro's config_enumerate
    silent = ReweightedWakeSleep(strict_enumeration_warning=False)
    with pytest.raises(ValueError, match="latent site 'z1' of the model is missing") as error:
        silent.losses(jax.random.key(0), {}, model, lambda x: None, DATA)
    check(error, ValueError, "numpyro.sample('z1', ...)")


# One by one


def branching_model(x):
    mu = numpyro.param("mu", 0.2)
    if numpyro.sample("branch", dist.Bernoulli(0.4)):
        z = numpyro.sample("z", dist.Normal(2.0 + mu, 1.0))
    else:
        z = numpyro.sample("z", dist.Normal(-1.0, 0.5)) + numpyro.sample("more", dist.Normal(0.0, 0.1))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def branching_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    if numpyro.sample("branch", dist.Bernoulli(logits=a)):
        numpyro.sample("z", dist.Normal(c * x + a, 1.0))
    else:
        numpyro.sample("z", dist.Normal(c, 0.5))
        numpyro.sample("more", dist.Normal(0.0, 0.1))


@pytest.mark.slow
@pytest.mark.usefixtures("allow_key_reuse")
def test_programs_that_branch_in_python_are_updated_one_by_one():
    loss = ReweightedWakeSleep(num_particles=4, vectorize_particles=False, insomnia=0.5, num_sleep_particles=2)
    svi = SVI(branching_model, branching_guide, two_optimizers("mu"), loss=loss)
    adams = {"theta_optimizer": ADAMS["theta"], "phi_optimizer": ADAMS["phi"]}
    options = {"num_particles": 4, "vectorize_particles": False, "insomnia": 0.5, "num_sleep_particles": 2}
    rws = rws_jax.make_step(branching_model, branching_guide, **adams, **options)
    svi_state, state = svi.init(jax.random.key(0), 1.3), rws.init(jax.random.key(0), 1.3)
    for _ in range(2):
        svi_state, value = svi.update(svi_state, 1.3)
        state, info = rws.step(state, 1.3)
        assert jnp.allclose(value, info.wake_theta_loss + info.phi_loss, rtol=1e-5)
    chex.assert_trees_all_close(svi.get_params(svi_state), {**state.theta, **state.phi}, rtol=1e-5)


@pytest.mark.floors
def test_particles_one_by_one_are_the_same_particles():
    params = {**models.BINARY_THETA, **models.BINARY_PHI}
    call = lambda vectorize: ReweightedWakeSleep(num_particles=3, vectorize_particles=vectorize).losses(
        jax.random.key(0), params, models.binary_model, models.binary_guide, DATA
    )
    assert jnp.allclose(jnp.array(call(True)), jnp.array(call(False)), rtol=1e-5)


def test_parameters_of_one_branch_belong_to_one_program_all_the_same():
    """The first particle may not meet them; both branches occur among the six."""

    def model(x, name="own"):
        branch = numpyro.sample("branch", dist.Bernoulli(0.5))
        loc = numpyro.param(name, 0.2) if branch else 1.0
        numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x, name="own"):
        numpyro.sample("branch", dist.Bernoulli(logits=numpyro.param("logit", 0.0) + 0.0 * x))

    params = {"own": jnp.array(0.2), "logit": jnp.array(0.1)}
    for insomnia in (0.0, 1.0):
        loss = ReweightedWakeSleep(6, insomnia, vectorize_particles=False)
        (wake_theta_loss, _), grads = loss.loss_and_grads(jax.random.key(0), params, model, guide, 0.5)
        assert wake_theta_loss is not None
        assert grads["own"] != 0.0
    with pytest.raises(ValueError, match="occur in both") as error:
        loss.losses(jax.random.key(0), params, model, guide, 0.5, name="logit")
    check(error, ValueError, "['logit']")


@pytest.mark.parametrize(
    ("vectorize", "words"),
    [(True, ["cannot be compiled", "vectorize_particles=False"]), (False, ["is traced by jit", "handlers.mask"])],
)
def test_python_branches_in_a_compiled_run_are_told(vectorize, words):
    loss = ReweightedWakeSleep(vectorize_particles=vectorize)
    svi = SVI(branching_model, branching_guide, optax.adam(0.1), loss=loss)
    with pytest.raises(TypeError, match="expected") as error:
        svi.run(jax.random.key(0), 2, 1.3, progress_bar=False)
    check(error, TypeError, *words)


# Branching sites, and programs of one datum


def counted(program, annotated, calls):
    """The same program, with its branching site annotated, and its runs counted."""

    def run(x):
        calls.append(x)
        infer_config(program, lambda site: {"branching": annotated and site["name"] == "branch"})(x)

    return run


def two_branches(x):
    is_first = numpyro.sample("branch", dist.Bernoulli(0.4))
    numpyro.sample("x", dist.Normal(1.0 if is_first else -1.0, 1.0), obs=x)


def two_branches_guide(x):
    numpyro.sample("branch", dist.Bernoulli(logits=numpyro.param("a", 0.0)))


@pytest.mark.usefixtures("allow_key_reuse")
def test_what_is_compiled_of_programs_that_branch_is_kept():
    """An update that meets no new path runs no program, and is checked no more."""
    calls = []
    programs = [counted(program, True, calls) for program in (two_branches, two_branches_guide)]
    loss = ReweightedWakeSleep(num_particles=1000)  # more than are run un-jitted, and groups of one size on each path
    svi = SVI(*programs, optax.adam(0.1), loss=loss)
    state = svi.init(jax.random.key(0), 1.3)
    num_calls = []
    for _ in range(3):
        before = len(calls)
        state, _ = svi.update(state, 1.3)
        num_calls.append(len(calls) - before)
    assert num_calls[0] > 0
    assert num_calls[1:] == [0, 0]


@pytest.mark.slow
@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize("data", [1.3, jnp.array([1.3, 0.2])])
def test_updates_of_programs_that_branch_are_steps(data):
    programs = [counted(program, True, []) for program in (branching_model, branching_guide)]
    axes = None if jnp.ndim(data) == 0 else 0
    loss = ReweightedWakeSleep(num_particles=40, data_axes=axes)
    svi = SVI(*programs, two_optimizers("mu"), loss=loss)
    adams = {"theta_optimizer": ADAMS["theta"], "phi_optimizer": ADAMS["phi"]}
    rws = rws_jax.make_step(*programs, **adams, num_particles=40, data_axes=axes)
    svi_state, state = svi.init(jax.random.key(0), 1.3), rws.init(jax.random.key(0), data)
    for _ in range(4):
        svi_state, value = svi.update(svi_state, data)
        state, info = rws.step(state, data)
        assert jnp.allclose(value, info.wake_theta_loss + info.phi_loss, rtol=1e-4)
    chex.assert_trees_all_close(svi.get_params(svi_state), {**state.theta, **state.phi}, rtol=1e-4)


def test_what_is_kept_is_of_these_programs_and_of_few(monkeypatch):
    """Others in the place of programs that were collected are not taken for the same."""
    monkeypatch.setattr("rws_jax.training.svi_programs._MAX_KNOWN", 1)
    loss = ReweightedWakeSleep(num_particles=2)

    def value_of(loc):
        def model(x):
            z = numpyro.sample("z", dist.Normal(loc, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

        guide = lambda x: numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
        call = lambda params: loss.loss(jax.random.key(0), params, model, guide, 0.5)
        return float(jax.jit(call)({"m": jnp.array(0.0)}))

    first, second, again = value_of(0.0), value_of(3.0), value_of(0.0)
    assert first != second
    assert first == again
    assert len(loss._programs._known) == 1


@pytest.mark.parametrize("kind", ["vectors", pytest.param("cond", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("allow_key_reuse")
def test_svi_starts_from_one_datum_with_data_axes(kind):
    """`run` then is that of `make_step`."""
    x = jnp.array([[0.3, 1.0], [-1.0, 0.5], [2.0, 0.1]])

    def model(x):
        z = numpyro.sample("z", dist.Normal(numpyro.param("mu", 0.2), 1.0))
        scale = cond(z > 0, lambda _: 1.0, lambda _: 2.0, None) if kind == "cond" else 1.0
        numpyro.sample("x", dist.Normal(z, scale).expand([2]).to_event(1), obs=x)

    def guide(x):
        weight = numpyro.param("weight", jnp.array([0.3, 0.2]))
        numpyro.sample("z", dist.Normal(jnp.dot(weight, x), 1.0))

    svi = SVI(model, guide, two_optimizers("mu"), loss=ReweightedWakeSleep(num_particles=3, data_axes=0))
    state = svi.init(jax.random.key(0), x[0])
    result = svi.run(jax.random.key(0), 3, x, init_state=state, progress_bar=False)
    adams = {"theta_optimizer": ADAMS["theta"], "phi_optimizer": ADAMS["phi"]}
    rws = rws_jax.make_step(model, guide, **adams, num_particles=3, data_axes=0)
    of_steps, infos = rws_jax.fit(rws.step, rws.init(jax.random.key(0), x), 3, x, progress_bar=False)
    assert jnp.allclose(result.losses, infos.wake_theta_loss + infos.phi_loss, rtol=1e-5)
    chex.assert_trees_all_close(result.params, rws.get_params(of_steps, x), rtol=1e-5)


# Bad input

ONLY_MAKE_STEP = ("theta_optimizer", "phi_optimizer", "phi_steps")


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        *[row for row in test_errors.BAD_OPTIONS if next(iter(row[0])) not in ONLY_MAKE_STEP],
        *test_errors.BAD_LOSS_OPTIONS,
        ({"insomnia": optax.linear_schedule(1.0, 0.0, 10)}, TypeError, "make_step, which takes schedules"),
        ({"max_plate_nesting": None}, TypeError, "'max_plate_nesting'"),
        ({"strict_enumeration_warning": "no"}, TypeError, "'strict_enumeration_warning'"),
        ({"vectorize_particles": jax.lax.map}, TypeError, "'vectorize_particles'"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)  # fmt: skip
def test_bad_options_are_refused_when_the_loss_is_made(options, kind, word):
    with pytest.raises(kind) as error:
        ReweightedWakeSleep(**options)
    check(error, kind, word)


def test_the_bound_on_plates_is_accepted():
    params = {**models.BINARY_THETA, **models.BINARY_PHI}
    call = lambda **options: jax.jit(
        lambda: ReweightedWakeSleep(**options).losses(
            jax.random.key(0), params, models.binary_model, models.binary_guide, DATA
        )
    )()
    assert call(max_plate_nesting=1) == call()


@pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
@pytest.mark.parametrize("name", [name for name in test_errors.MISMATCHES if name != "enumeration"])
def test_programs_that_do_not_fit_are_refused(name):
    model, guide, words = test_errors.MISMATCHES[name]
    params = {"m": jnp.zeros(()), "auto_m_auto_loc": 0.0, "z_auto_loc": jnp.zeros(3), "w": jnp.zeros(())}
    with pytest.raises(ValueError, match="expected") as error:
        ReweightedWakeSleep().losses(jax.random.key(0), params, model, guide, test_errors.X)
    check(error, ValueError, *words)


@pytest.mark.filterwarnings("ignore:the guide 'guide' reads no data")
@pytest.mark.parametrize("method", ["run", "update", "evaluate"])
@pytest.mark.parametrize("bad", ["data", "dreams"])
def test_values_are_checked_before_training(bad, method):
    """`SVI.run` compiles; it knows the data all the same."""

    def reading_model(x):
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z + (x.mean() if bad == "dreams" else 0.0), 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))

    x = jnp.array([0.5, jnp.nan if bad == "data" else 1.0, 2.0])
    svi = SVI(reading_model, guide, optax.adam(0.1), loss=ReweightedWakeSleep(insomnia=0.5))
    words = {"data": "data at observed site 'x' are NaN", "dreams": "depend on the real data of observed site 'x'"}
    train = svi.run if method == "run" else lambda key, _, x, **kwargs: getattr(svi, method)(svi.init(key, x), x)
    with pytest.raises(ValueError, match="expected") as error:
        train(jax.random.key(0), 2, x, progress_bar=False)
    check(error, ValueError, words[bad])


def test_seeded_programs_are_refused():
    seeded = seed(models.binary_guide, 0)
    with pytest.raises(ValueError, match="seeded already") as error:
        ReweightedWakeSleep().losses(jax.random.key(0), {}, models.binary_model, seeded, DATA)
    check(error, ValueError, "the guide is seeded already")


@pytest.mark.usefixtures("allow_rank_promotion")
def test_mutable_sites_that_depend_on_draws_are_named():
    """Running statistics of what particles draw, say: each would have its own."""

    def model(x):
        norm = nn.BatchNorm(use_running_average=False)
        net = flax_module("net", norm, input_shape=(3, 1), mutable=["batch_stats"])
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(net(z[:, None])[:, 0], 1.0), obs=x)

    svi = SVI(model, test_errors.guide, optax.adam(0.1), loss=ReweightedWakeSleep())
    with pytest.raises(ValueError, match="mutable site") as error:
        svi.run(jax.random.key(0), 2, test_errors.X, progress_bar=False)
    check(error, ValueError, "'net$state' of the model depends on what particles draw", "LayerNorm")


def test_the_key_goes_first():
    with pytest.raises(TypeError, match="not a random key") as error:
        ReweightedWakeSleep().losses({"m": 0.0}, jax.random.key(0), test_errors.model, test_errors.guide, test_errors.X)
    check(error, TypeError, "the first argument of the loss", "jax.random.key(0), params")


def test_model_has_params_must_be_true_to_its_word():
    params = {**models.BINARY_THETA, **models.BINARY_PHI}
    loss = ReweightedWakeSleep(insomnia=0.0, model_has_params=False)
    with pytest.raises(ValueError, match="'model_has_params' is False") as error:
        loss.losses(jax.random.key(0), params, models.binary_model, models.binary_guide, DATA)
    check(error, ValueError, "['p1', 't2', 'tx']", "set_to_zero")


def test_elements_that_depend_on_one_another_are_refused_by_run():
    """Which values show; those of the arguments are known there."""

    def model(x):
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(jnp.cumsum(z), 1.0), obs=x)

    svi = SVI(model, test_errors.guide, optax.adam(0.1), loss=ReweightedWakeSleep())
    with pytest.raises(ValueError, match="depend on one another at site 'x' of the model"):
        svi.run(jax.random.key(0), 2, test_errors.X, progress_bar=False)


@pytest.mark.usefixtures("allow_key_reuse")
def test_a_run_compiles_programs_that_branch_as_a_whole():
    """Its losses are those of updates one by one, also where nothing has run before."""
    programs = [counted(program, True, []) for program in (two_branches, two_branches_guide)]
    make = lambda: SVI(*programs, optax.adam(0.1), loss=ReweightedWakeSleep(num_particles=5, insomnia=0.5))
    result = make().run(jax.random.key(0), 3, 1.3, progress_bar=False)
    svi = make()
    state, losses = svi.init(jax.random.key(0), 1.3), []
    for _ in range(3):
        state, loss = svi.update(state, 1.3)
        losses.append(loss)
    assert jnp.allclose(result.losses, jnp.array(losses), rtol=1e-5)
    chex.assert_trees_all_close(result.params, svi.get_params(state), rtol=1e-4)


@pytest.mark.usefixtures("allow_key_reuse")
def test_a_jitted_update_of_programs_that_branch_wants_one_call_before():
    programs = [counted(program, True, []) for program in (two_branches, two_branches_guide)]
    svi = SVI(*programs, optax.adam(0.1), loss=ReweightedWakeSleep(num_particles=5))
    state = svi.init(jax.random.key(0), 1.3)
    with pytest.raises(TypeError, match="programs have branching sites, but the call is traced") as error:
        jax.jit(svi.update)(state, 1.3)
    check(error, BranchingSiteError, "svi.evaluate", "un-jitted first")
    svi.evaluate(state, 1.3)
    found, expected = jax.jit(svi.update)(state, 1.3), svi.update(state, 1.3)
    assert jnp.allclose(found[1], expected[1], rtol=1e-5)


@pytest.mark.usefixtures("allow_key_reuse")
def test_data_in_chunks_are_the_same_run():
    """Of SVI, of `fit`, and of what `evaluate` reports."""
    model = lambda x: numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)
    guide = lambda x: numpyro.sample("z", dist.Normal(numpyro.param("a", 0.3) * x, 1.0))
    x, options = jnp.array([0.3, -1.0, 2.0]), {"num_particles": 3, "data_axes": 0}

    def results_of(**more):
        svi = SVI(model, guide, optax.adam(0.1), loss=ReweightedWakeSleep(**options, **more))
        run = svi.run(jax.random.key(0), 2, x, init_state=svi.init(jax.random.key(0), x[0]), progress_bar=False)
        rws = rws_jax.make_step(model, guide, **options, **more)
        state, infos = rws_jax.fit(rws.step, rws.init(jax.random.key(0), x), 2, x, progress_bar=False)
        return run.losses, run.params, state.plain.phi, infos.phi_loss, rws.evaluate(state, x).ess_mean

    chex.assert_trees_all_close(results_of(data_chunk_size=2), results_of(), rtol=1e-5)
