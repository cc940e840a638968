"""`rws.evaluate`: what a step would report of other data, and nothing moves."""

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.stats import norm
from numpyro.handlers import seed

import rws_jax
from rws_jax.training import trainer
from tests import models
from tests.checks.test_errors import check
from tests.training.test_describe import branching, branching_guide

X, HELD_OUT = models.BINARY_DATA, jnp.array([1.0, 0.0, 0.0, 1.0, 1.0])
pytestmark = pytest.mark.usefixtures("allow_key_reuse")  # the same state for all


def binary(**options):
    return rws_jax.make_step(models.binary_model, models.binary_guide, **options)


@pytest.mark.floors
def test_it_reports_the_losses_of_other_data():
    """Of a share of its own of the state's key."""
    rws = binary(num_particles=4, insomnia=0.7)
    state = rws.init(jax.random.key(0), X)
    info = rws.evaluate(state, HELD_OUT)
    keys = jax.random.split(jax.random.fold_in(state.rng_key, trainer._EVALUATION), 4)
    model, guide = models.binary_model, models.binary_guide
    params = rws.get_params(state, X)

    @jax.jit
    def losses():
        awake = seed(model, keys[0]), seed(guide, keys[1]), HELD_OUT
        asleep = seed(model, keys[2]), seed(guide, keys[3]), HELD_OUT
        theta = rws_jax.wake_theta_loss(params, params, *awake, num_particles=4)
        wake = rws_jax.wake_phi_loss(params, params, *awake, num_particles=4)
        sleep = rws_jax.sleep_phi_loss(params, params, *asleep, num_particles=4)
        return theta, wake, sleep, 0.7 * wake + 0.3 * sleep

    found = info.wake_theta_loss, info.wake_phi_loss, info.sleep_phi_loss, info.phi_loss
    chex.assert_trees_all_close(found, losses(), rtol=1e-5)
    _, of_step = rws.step(state, HELD_OUT)
    names, of_steps = ({n for n, x in each._asdict().items() if x is not None} for each in (info, of_step))
    assert names == of_steps - {"theta_grad_norm", "phi_grad_norm"} | {"step"}
    assert info.finite
    assert info.step == 0


def conjugate_model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.5), 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def conjugate_guide(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(0.25 + numpyro.param("slope", 0.5) * x, jnp.sqrt(0.5)))


def test_with_the_exact_posterior_it_is_the_evidence():
    rws = rws_jax.make_step(conjugate_model, conjugate_guide, num_particles=5)
    state = rws.init(jax.random.key(0), X)
    x = jnp.linspace(-2.0, 3.0, 7)
    info = rws.evaluate(state, x)
    expected = -norm.logpdf(x, 0.5, jnp.sqrt(2.0)).sum()
    assert info.wake_theta_loss == pytest.approx(float(expected), rel=1e-5)
    assert (float(info.ess_min), info.num_dead_units) == (pytest.approx(5.0, rel=1e-5), 0)


@pytest.mark.parametrize("phi_steps", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_same_state_gives_the_same_particles_and_not_those_of_the_next_step(phi_steps):
    rws = binary(num_particles=4, phi_steps=phi_steps)
    state = rws.init(jax.random.key(0), X)
    first, again = rws.evaluate(state, X), rws.evaluate(state, X)
    chex.assert_trees_all_equal(first, again)
    after, info = rws.step(state, X)
    assert first.wake_theta_loss != info.wake_theta_loss
    assert first.wake_theta_loss != rws.evaluate(state._replace(rng_key=after.rng_key), X).wake_theta_loss
    split = jax.random.key_data(jax.random.split(state.rng_key, 8)).tolist()
    assert jax.random.key_data(jax.random.fold_in(state.rng_key, trainer._EVALUATION)).tolist() not in split


def test_it_is_traced_once_and_may_be_mapped_scanned_and_jitted():
    count = 0

    def model(x):
        nonlocal count
        count += 1
        models.binary_model(x)

    rws = rws_jax.make_step(model, models.binary_guide, num_particles=4)
    states = jax.vmap(lambda key: rws.init(key, X))(jax.random.split(jax.random.key(0), 3))
    state = jax.tree.map(lambda leaf: leaf[1], states)
    expected, traced = rws.evaluate(state, HELD_OUT), count
    _ = rws.evaluate(state._replace(rng_key=jax.random.key(5), step=state.step + 1), HELD_OUT)
    assert count == traced
    of_states = jax.vmap(rws.evaluate, in_axes=(0, None))(states, HELD_OUT)
    _, scanned = jax.lax.scan(lambda carry, x: (carry, rws.evaluate(state, x)), 0, HELD_OUT[None])
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], of_states), expected, rtol=1e-5)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], scanned), expected, rtol=1e-5)


@pytest.mark.slow
def test_by_paths_and_one_by_one_it_gives_the_same_numbers():
    x = jnp.array([0.3, 2.0])
    found = []
    for options in ({"data_axes": 0}, {"data_axes": 0, "vectorize_particles": False}):
        rws = rws_jax.make_step(branching, branching_guide, num_particles=3, insomnia=0.5, **options)
        state = rws.init(jax.random.key(0), x)
        found.append(rws.evaluate(state, x[::-1]))
    shared = [name for name, value in found[1]._asdict().items() if value is not None]
    assert {"wake_theta_loss", "sleep_phi_loss", "ess_mean"} <= set(shared)
    by_paths, one_by_one = ({name: getattr(info, name) for name in shared} for info in found)
    chex.assert_trees_all_close(by_paths, one_by_one, rtol=1e-4)
    assert found[0].num_paths >= 2


@pytest.mark.slow
def test_mutable_state_is_used_and_not_carried_on():
    def model(x):
        seen = numpyro.primitives.mutable("seen", {"mean": jnp.array(0.0)})
        loc = seen["mean"]
        seen["mean"] = 0.5 * seen["mean"] + x.mean()
        z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0) + loc, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)

    rws = rws_jax.make_step(model, lambda x: numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0), 1.0)))
    state = rws.init(jax.random.key(0), X)
    moved = state._replace(mutable_state={"seen": {"mean": jnp.array(3.0)}})
    before, after = rws.evaluate(state, X), rws.evaluate(moved, X)
    assert before.wake_theta_loss != after.wake_theta_loss
    chex.assert_trees_all_equal(rws.evaluate(state, X), before)


@pytest.mark.slow
def test_insomnia_is_that_of_the_state_and_shared_parameters_are_found():
    def model(x):
        z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.5), 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = lambda x: numpyro.sample("z", dist.Normal(0.5 * numpyro.param("m", 0.5) + 0.5 * x, 0.7))
    rws = rws_jax.make_step(model, guide, insomnia=optax.linear_schedule(1.0, 0.0, 10), shared_params=True)
    state = rws.init(jax.random.key(0), 1.3)
    info = rws.evaluate(state._replace(step=state.step + 4), 1.3)
    assert info.insomnia == pytest.approx(0.6)
    mixed = 0.6 * info.wake_phi_loss + 0.4 * info.sleep_phi_loss
    assert info.phi_loss == pytest.approx(float(mixed), rel=1e-5)


@pytest.mark.parametrize("kind", models.rows(["nan", "dead"], fast=["dead"]))
def test_what_is_not_finite_or_dead_is_said(kind):
    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
            numpyro.sample("x", dist.Uniform(0.0, 1.0 + z**2), obs=x)

    rws = rws_jax.make_step(model, conjugate_guide)
    state = rws.init(jax.random.key(0), jnp.array([0.5, 0.5]))
    if kind == "nan":
        info = rws.evaluate(state._replace(theta={"m": jnp.array(jnp.nan)}), jnp.array([0.5, 0.6]))
    else:
        info = rws.evaluate(state, jnp.array([-1.0, -2.0]))
    assert not info.finite
    assert info.num_dead_units == {"nan": 0, "dead": 2}[kind]
    assert jnp.isnan(info.wake_theta_loss) == (kind == "nan")


def test_rws_unpacks_as_before_and_other_states_are_refused():
    rws = binary()
    _init, step, _get_params = rws
    assert len(rws) == 3
    assert rws.evaluate is step.evaluate
    with pytest.raises(TypeError, match="the first argument of evaluate is not a state") as error:
        rws.evaluate({}, X)
    check(error, TypeError, "RWSState")
    other = rws_jax.make_step(conjugate_model, conjugate_guide).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="the state is of another model") as error:
        rws.evaluate(other, X)
    check(error, ValueError, "rws.init")
