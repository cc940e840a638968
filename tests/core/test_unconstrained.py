"""What a state holds cannot be taken for parameters, and parameters that are known are held to their constraints."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import condition, seed, substitute
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

import rws_jax
from rws_jax.core.unconstrained import Unconstrained
from tests.checks.test_errors import check

X = jnp.array([0.5, -1.0])


def model(x):
    rate = numpyro.param("rate", 2.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", 2):
        z = numpyro.sample("z", dist.Exponential(rate))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    rate = numpyro.param("guide_rate", 3.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", 2):
        numpyro.sample("z", dist.Exponential(rate))


RWS = rws_jax.make_step(model, guide, theta_optimizer=optax.sgd(0.1), phi_optimizer=optax.sgd(0.1))
LOSSES = rws_jax.wake_theta_loss, rws_jax.wake_phi_loss, rws_jax.sleep_phi_loss


@pytest.fixture
def state():
    return RWS.init(jax.random.key(0), X)


def losses(loss):
    programs = seed(model, jax.random.key(0)), seed(guide, jax.random.key(1))
    return lambda theta, phi: loss(theta, phi, *programs, X)


MISTAKES = {
    "theta in a loss": lambda state: losses(rws_jax.wake_theta_loss)(state.theta, {"guide_rate": 1.0}),
    "phi in a loss": lambda state: losses(rws_jax.wake_phi_loss)({"rate": 1.0}, state.phi),
    "in sleep": lambda state: losses(rws_jax.sleep_phi_loss)({"rate": 1.0}, state.phi),
    "compiled": lambda state: jax.jit(losses(rws_jax.wake_theta_loss))(state.theta, {"guide_rate": 1.0}),
    "gradient": lambda state: jax.grad(losses(rws_jax.wake_phi_loss), 1)({"rate": 1.0}, state.phi),
    "moved by an optimizer": lambda state: losses(rws_jax.wake_phi_loss)(
        {"rate": 1.0}, optax.apply_updates(state.phi, jax.tree.map(jnp.ones_like, state.phi))
    ),
    "both": lambda state: losses(rws_jax.wake_phi_loss)(state.theta | state.phi, {"guide_rate": 1.0}),
    "beside others": lambda state: losses(rws_jax.wake_phi_loss)({"rate": 1.0} | state.phi, {"guide_rate": 1.0}),
    "in SVI's loss": lambda state: rws_jax.ReweightedWakeSleep().losses(
        jax.random.key(0), state.theta | state.phi, model, guide, X
    ),
    "Predictive": lambda state: Predictive(guide, params=state.phi, num_samples=2)(jax.random.key(0), X),
    "posterior": lambda state: Predictive(model, guide=guide, params=state.phi, num_samples=2)(jax.random.key(0), X),
    "substitute": lambda state: substitute(seed(guide, 0), state.phi)(X),
    "condition": lambda state: condition(seed(guide, 0), state.phi)(X),
    "log density": lambda state: log_density(seed(guide, 0), (X,), {}, state.phi),
}


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize("name", MISTAKES)
def test_the_values_of_a_state_are_refused_where_parameters_are_asked_for(name, state):
    with pytest.raises(TypeError, match="unconstrained") as error:
        MISTAKES[name](state)
    check(error, TypeError, "are taken from a state", "rws.get_params(state, *args)")


@pytest.mark.usefixtures("allow_key_reuse")
def test_they_are_read_changed_and_saved_as_those_of_a_dict(state):
    assert jnp.allclose(state.theta["rate"], jnp.log(2.0))
    assert {**state.theta, **state.phi}.keys() == {"rate", "guide_rate"}
    changed = state._replace(theta=state.theta | {"rate": jnp.array(0.0)})
    assert RWS.get_params(changed, X)["rate"] == 1.0
    after, _ = RWS.step(changed, X)
    assert type(after.theta) is Unconstrained
    restored = pickle.loads(pickle.dumps(state))
    assert type(restored.phi) is Unconstrained
    assert RWS.step(restored, X)[0].theta == RWS.step(state, X)[0].theta
    assert jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(state.theta)[0][0]) == "['rate']"


@pytest.mark.usefixtures("allow_key_reuse")
def test_a_state_of_plain_dicts_goes_on_as_one(state):
    """As a checkpoint may give it; a scan needs what goes in to come out."""
    plain = state.plain
    assert type(plain.theta) is dict
    steps = jax.lax.scan(lambda state, _: (RWS.step(state, X)[0], None), plain, length=2)[0]
    assert type(steps.theta) is dict
    expected = RWS.step(RWS.step(state, X)[0], X)[0]
    assert jnp.allclose(steps.theta["rate"], expected.theta["rate"])


OUTSIDE = {
    "of the model": (rws_jax.wake_theta_loss, {"rate": -0.5}, {"guide_rate": 1.0}, "'rate' of the model", "-0.5"),
    "of the guide": (rws_jax.wake_phi_loss, {"rate": 0.5}, {"guide_rate": -1.0}, "'guide_rate' of the guide", "-1.0"),
    "in sleep": (rws_jax.sleep_phi_loss, {"rate": jnp.array(-2.0)}, {"guide_rate": 1.0}, "'rate' of the model", "-2.0"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_known_values_outside_of_their_constraint_are_refused(name):
    loss, theta, phi, *words = OUTSIDE[name]
    with pytest.raises(ValueError, match="outside of its constraint") as error:
        losses(loss)(theta, phi)
    check(error, ValueError, *words, "Positive", "get_params")


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.slow
def test_values_on_the_border_and_constrained_ones_are_accepted(state):
    """A float may be rounded to the border; vectors and matrices, which are tested within tolerances, are trusted."""
    params = RWS.get_params(state, X)
    for loss in LOSSES:
        assert jnp.isfinite(losses(loss)(params, params))

    def simplex_guide(x):
        p = numpyro.param("p", jnp.ones(3) / 3, constraint=dist.constraints.simplex)
        u = numpyro.param("u", 0.5, constraint=dist.constraints.unit_interval)
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Exponential(1.0 + p[0] + u))

    loss = partial(rws_jax.wake_phi_loss, {"rate": 1.0})
    phi = {"p": jnp.array([0.5, 0.5, 1e-4]), "u": 1.0}
    assert jnp.isfinite(loss(phi, seed(model, 0), seed(simplex_guide, 1), X))
