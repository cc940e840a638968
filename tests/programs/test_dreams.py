"""Sleep: dreams replace all real data, in the model and on their way to the guide."""

from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.handlers import seed
from numpyro.infer.autoguide import AutoNormal

import rws_jax
from rws_jax.programs.observations import show_data
from tests import models
from tests.oracles import dream

REAL = {"x": jnp.zeros(3), "y": jnp.ones(3)}
DREAMT = {"x": jnp.full(3, 7.0), "y": jnp.full(3, 8.0)}
COVARIATE = jnp.array([1.0, 2.0, 3.0])


def by_name(covariate, x, y=None):
    """Guide arguments named as the observed sites."""


def by_dict(covariate, x, y=None, observations=None):
    """Pyro's convention, which goes before names."""


def test_arguments_named_as_sites_get_dreams_and_covariates_stay():
    for args, kwargs in (((COVARIATE, REAL["x"], REAL["y"]), {}), ((COVARIATE, REAL["x"]), {"y": REAL["y"]})):
        shown, extra = show_data(by_name, DREAMT, args, kwargs, None)
        assert extra == {}
        assert shown[0] is COVARIATE
        assert shown[1] is DREAMT["x"]
        assert shown[2] is DREAMT["y"]


def test_arguments_that_were_not_passed_get_dreams_too():
    shown, _ = show_data(by_name, DREAMT, (COVARIATE,), {}, None)
    assert shown[1] is DREAMT["x"]
    assert shown[2] is DREAMT["y"]


def test_observations_are_a_dict_by_site():
    shown, extra = show_data(by_dict, DREAMT, (COVARIATE, REAL["x"]), {"observations": REAL}, None)
    assert len(shown) == 2
    assert extra.keys() == {"observations"}
    assert extra["observations"].keys() == DREAMT.keys()
    assert all(extra["observations"][name] is DREAMT[name] for name in DREAMT)


def test_simulated_data_to_args_goes_before_all():
    rewrite = lambda sim, covariate, x: ((covariate, {"both": sim}), {"flag": x})
    shown, extra = show_data(by_dict, DREAMT, (COVARIATE, REAL["x"]), {}, rewrite)
    assert shown == (COVARIATE, {"both": DREAMT})
    assert extra == {"flag": REAL["x"]}


def test_all_observed_sites_must_have_a_place():
    with pytest.raises(ValueError, match="sleep cannot hand its dreams"):
        show_data(lambda x, other: None, DREAMT, (REAL["x"], REAL["y"]), {}, None)


@pytest.mark.parametrize("given", ["arguments", "observations"])
def test_shapes_of_dreams_and_data_agree(given):
    long = {name: jnp.zeros(5) for name in REAL}
    guide, args, kwargs = {
        "arguments": (by_name, (COVARIATE, long["x"]), {}),
        "observations": (by_dict, (COVARIATE,), {"observations": long}),
    }[given]
    with pytest.raises(ValueError, match="dreamt and real data differ in shape at observed site 'x'"):
        show_data(guide, DREAMT, args, kwargs, None)


@pytest.mark.floors
def test_signatures_are_seen_through_handlers():
    wrapped = numpyro.handlers.scale(seed(by_name, 0), scale=2.0)
    assert show_data(wrapped, DREAMT, (COVARIATE, REAL["x"]), {}, None)[0][1] is DREAMT["x"]


def autoregressive(x):
    """Each observation is the mean of the next: real data would show at once."""

    def step(previous, x):
        z = numpyro.sample("z", dist.Normal(0.0, 0.1))
        x = numpyro.sample("x", dist.Normal(previous + z, 0.1), obs=x)
        return x, None

    scan(step, 0.0, x)


@pytest.mark.floors
def test_dreams_of_scan_carry_no_real_data():
    real = jnp.array([1e3, 2e3, 3e3])
    latents, data = dream(autoregressive, 2000, real)
    assert data["x"].shape == (2000, 3)
    steps = jnp.diff(data["x"], axis=1, prepend=0.0)
    assert jnp.abs(steps).max() < 1.0
    # x_t - x_(t-1) = z_t + noise, both of standard deviation 0.1; 5 standard errors are 0.08 of the variance.
    assert jnp.allclose(steps.var(axis=0), 0.02, rtol=0.16)
    assert jnp.allclose((steps - latents["z"]).var(axis=0), 0.01, rtol=0.16)


def test_dreams_have_plates_covariates_and_the_shapes_of_data():
    def model(covariate, x):
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(100.0 * covariate, 1.0))
            numpyro.sample("x", dist.Normal(z, 0.1), obs=x)

    latents, data = dream(model, 5, COVARIATE, REAL["x"])
    assert data["x"].shape == latents["z"].shape == (5, 3)
    assert jnp.all(jnp.abs(data["x"] - 100.0 * COVARIATE[None]) < 10.0)
    assert jnp.all(jnp.abs(data["x"] - latents["z"]) < 1.0)


def test_sleep_learns_what_the_model_means_and_not_the_data():
    """The real data are all 5; under the model they would be N(0, 2)."""

    def model(x):
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0) * x, 1.0))

    def loss(a, key):
        return rws_jax.sleep_phi_loss(
            {}, {"a": a}, seed(model, key), seed(guide, key), jnp.full(3, 5.0), num_particles=50
        ) / 3  # fmt: skip

    keys = jax.random.split(jax.random.key(0), 200)
    with jax.debug_key_reuse(False):
        grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(0.2, keys)
    exact = 0.2 * 2.0 - 1.0  # E[(a x - z) x] = a Var x - Cov(z, x)
    assert jnp.abs(grads.mean() - exact) < 5 * grads.std() / jnp.sqrt(len(keys))


def named_guide(x, observations=None):
    numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.1) * x, 1.0))


def test_an_argument_named_as_the_site_gets_the_dreams_beside_observations():
    """The guide may read either; a real datum in one of them would be learnt from in silence."""

    def model(x, observations=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    rws = rws_jax.make_step(model, named_guide, insomnia=0.0, num_particles=20, phi_optimizer=optax.adam(0.01))
    state = rws.init(jax.random.key(0), 3.0)
    state, _ = jax.lax.scan(lambda state, _: rws.step(state, 3.0), state, length=1000)
    assert jnp.abs(state.phi["slope"] - 0.5) < 0.05


def test_dreams_have_the_float_type_of_the_data_that_they_stand_for():
    def model(x):
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Bernoulli(0.5), obs=x)

    for dtype in (jnp.float16, jnp.float32, int):
        real = jnp.array(1, dtype)
        _, data = dream(model, 2, real)
        assert data["x"].dtype == real.dtype


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.filterwarnings("ignore:the guide 'AutoNormal' reads no data")
@pytest.mark.parametrize("insomnia", [0.0, 0.5, 1.0])
def test_auto_normal_is_a_guide_in_wake_and_sleep(insomnia):
    """Posterior N(1, 1/2), prior N(0, 1)."""

    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    # From AutoNormal's default scale, 0.1, Adam takes thousands of steps to the prior: its gradients start too large.
    options = {"insomnia": insomnia, "num_particles": 200, "phi_optimizer": optax.adam(0.03)}
    rws = rws_jax.make_step(model, AutoNormal(model, init_scale=0.5), **options)
    state = rws.init(jax.random.key(0), 2.0)
    state, infos = jax.lax.scan(lambda state, _: rws.step(state, 2.0), state, length=800)
    assert bool(infos.finite.all())
    if insomnia != 0.5:
        loc, scale = (1.0, jnp.sqrt(0.5)) if insomnia == 1.0 else (0.0, 1.0)
        params = rws.get_params(state, 2.0)
        assert jnp.abs(params["z_auto_loc"] - loc) < 0.1
        assert jnp.abs(params["z_auto_scale"] - scale) < 0.1


def model_with_data_in_cond(x, observed=True):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    high = lambda _: numpyro.sample("x", dist.Normal(z + 2.0, 1.0), obs=x if observed else None)
    low = lambda _: numpyro.sample("x", dist.Normal(z - 2.0, 0.5), obs=x if observed else None)
    cond(z > 0, high, low, None)


def normal_guide(x):
    numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0), 1.0))


@pytest.mark.floors
@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize(
    ("model", "guide", "x"),
    [
        pytest.param(models.scan_model, models.scan_guide, models.SCAN_X, id="scan"),
        pytest.param(model_with_data_in_cond, normal_guide, jnp.array(1.3), id="cond"),
    ],
)
def test_data_given_by_condition_are_data(model, guide, x):
    """In wake they are scored, as with obs=; in sleep they are dreamt."""
    conditioned = numpyro.handlers.condition(partial(model, observed=False), data={"x": x})
    params = models.BY_HAND_THETA, models.BY_HAND_PHI
    loss = lambda program: rws_jax.wake_theta_loss(*params, seed(program, 0), seed(guide, 1), x)
    assert jnp.allclose(*jax.jit(lambda: [loss(program) for program in (model, conditioned)])())
    _, data = dream(conditioned, 3, x, params=params[0])
    assert data["x"].shape == (3, *x.shape)
    assert not jnp.any(data["x"] == x[None])


def test_the_outer_of_two_conditions_holds_in_scan():
    x = models.SCAN_X
    inner = numpyro.handlers.condition(partial(models.scan_model, observed=False), data={"x": x + 1.0})
    both = numpyro.handlers.condition(inner, data={"x": x})
    params = models.BY_HAND_THETA, models.BY_HAND_PHI
    loss = lambda model: rws_jax.wake_theta_loss(*params, seed(model, 0), seed(models.scan_guide, 1), x)
    assert jnp.allclose(*jax.jit(lambda: (loss(both), loss(models.scan_model)))())


@pytest.mark.usefixtures("allow_rank_promotion")
def test_minibatches_of_any_form_can_be_dreamt():
    """The minibatch is passed; what the model makes of it need not have the shape of an argument."""

    def model(images):
        with numpyro.plate("data", 100, subsample_size=len(images)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            flat = images.reshape(len(images), -1)
            numpyro.sample("x", dist.Normal(z[:, None], 1.0).expand(flat.shape).to_event(1), obs=flat)

    def guide(images):
        with numpyro.plate("data", 100, subsample_size=len(images)):
            numpyro.sample("z", dist.Normal(numpyro.param("a", 0.5) * images.mean(axis=(1, 2)), 1.0))

    rewrite = lambda sim, images: ((sim["x"].reshape(images.shape),), {})
    rws = rws_jax.make_step(model, guide, insomnia=0.0, simulated_data_to_args=rewrite)
    with jax.debug_key_reuse(False):
        state = rws.init(jax.random.key(0), jnp.ones((5, 2, 2)))
        _, info = rws.step(state, jnp.ones((5, 2, 2)))
    assert bool(info.finite)
