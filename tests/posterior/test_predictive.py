"""New data from weighted samples follow the exact predictive distribution, however programs are written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import condition, mask, substitute
from numpyro.infer import Predictive

import rws_jax
from tests.models import rows
from tests.posterior import exact
from tests.posterior.exact import key

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")

NUM = 20_000


def inferred(case, num=NUM):
    return rws_jax.importance_sample(
        key(), case.params, case.model, case.guide, *case.args, num_particles=num, **case.options
    )


def predicted(case, weighted, *args, **options):
    args = args or case.args
    options = case.options | options
    return rws_jax.posterior_predictive(key(1), case.params, case.model, weighted, *args, **options)


def check_moments(x, weighted, mean, variance):
    """Within 5 standard errors: those of so many draws, and of the weights that they were resampled by."""
    x, num = np.asarray(x, float), 1 / (1 / len(x) + 1 / np.min(weighted.effective_sample_size()))
    assert x.shape[1:] == np.shape(mean)
    np.testing.assert_array_less(np.abs(x.mean(axis=0) - mean), 5 * np.sqrt(x.var(axis=0) / num))
    squares = (x - mean) ** 2
    np.testing.assert_array_less(np.abs(squares.mean(axis=0) - variance), 5 * np.sqrt(squares.var(axis=0) / num))


def moments(case):
    """Mean and variance of new data of the same latents, in closed form."""
    mean, variance = case.means, case.variances
    if "mu" in mean or case.model.__qualname__.startswith(("one_gaussian", "state_space")):
        return mean["z"], variance["z"] + 1
    if "b" in mean:
        return mean["b"], variance["b"] + 1
    (x,) = case.args
    if "k" in mean:  # one or two components that add up
        p = np.stack([1 - mean["k"], mean["k"]], axis=1)
        locs, variances = x[:, None] * np.array([1 / 2, 2 / 3]), np.array([1 / 2, 2 / 3])
    else:
        joint = np.array([0.2, 0.3, 0.5]) * np.exp(exact.log_normal(x[:, None], np.array([-2.0, 0.0, 2.0]), 1.0))
        p, locs, variances = joint / joint.sum(axis=1, keepdims=True), np.array([-2.0, 0.0, 2.0]), np.zeros(3)
    of_mixture = np.sum(p * locs, axis=1)
    return of_mixture, 1 + np.sum(p * (variances + locs**2), axis=1) - of_mixture**2


@pytest.mark.parametrize("name", rows(exact.CASES, fast=("two gaussians", "discrete", "state space")))
def test_new_data_follow_the_exact_predictive_distribution(name):
    """Real data are passed for the observed sites, which are drawn anew all the same."""
    case = exact.CASES[name]()
    weighted = inferred(case)
    found = predicted(case, weighted)
    assert list(found) == ["x"]
    check_moments(found["x"], weighted, *moments(case))


def test_a_new_group_is_drawn_given_what_is_kept():
    """Of five groups where three were seen: each is mu and two standard deviations of one away."""
    case = exact.hierarchical()
    weighted = inferred(case)
    found = predicted(case, weighted, jnp.zeros(5), draw_anew=["z"])
    assert found.keys() == {"x", "z"}
    mean, variance = np.full(5, case.means["mu"]), np.full(5, case.variances["mu"])
    check_moments(found["z"], weighted, mean, variance + 1)
    check_moments(found["x"], weighted, mean, variance + 2)
    shared = np.cov(np.asarray(found["z"]).T)[0, 1]  # groups have mu in common
    assert abs(shared - case.variances["mu"]) < 0.1


def regression(x, y=None):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("data", len(x)):
        loc = numpyro.deterministic("loc", x @ w)
        numpyro.sample("y", dist.Normal(loc, numpyro.param("noise", 1.0)), obs=y)


def regression_guide(x, y=None):
    numpyro.sample("w", dist.Normal(numpyro.param("m", jnp.zeros(2)), 1.0).to_event(1))


def test_other_data_of_the_same_number_need_their_latents_drawn_anew():
    """By definition x' is that of the latents which are kept, whatever the covariates are now."""

    def model(t, x=None):
        with numpyro.plate("data", len(t)):
            z = numpyro.sample("level", dist.Normal(t, 0.01))
            numpyro.sample("x", dist.Normal(z, 0.01), obs=x)

    def guide(t, x):
        with numpyro.plate("data", len(t)):
            numpyro.sample("level", dist.Normal(x, 0.01))

    t = jnp.arange(3.0)
    weighted = rws_jax.importance_sample(key(), {}, model, guide, t, t, num_particles=8)
    draw = lambda **options: rws_jax.posterior_predictive(key(1), {}, model, weighted, t + 10, **options)["x"]
    np.testing.assert_allclose(draw(), np.resize(t, (8, 3)), atol=0.2)
    np.testing.assert_allclose(draw(draw_anew="level"), np.resize(t + 10, (8, 3)), atol=0.2)  # one name, or several
    np.testing.assert_array_equal(draw(draw_anew="level"), draw(draw_anew=["level"]))


X, Y = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), np.array([0.1, 0.9, 2.2])
PARAMS = {"noise": 0.5, "m": jnp.array([0.1, 0.8])}


def regression_samples(num=NUM):
    return rws_jax.importance_sample(key(), PARAMS, regression, regression_guide, X, Y, num_particles=num)


def test_new_covariates_and_numpyros_own_predictive():
    """Four new rows, with the trained noise; the samples go straight into NumPyro's Predictive, which agrees."""
    weighted = regression_samples()
    x = np.array([[1.0, 3.0], [1.0, -1.0], [0.0, 1.0], [2.0, 0.5]])
    _, mean, cov = exact.linear(np.eye(2), X, 0.25 * np.eye(3), Y)
    expected = x @ mean, np.diag(x @ cov @ x.T) + 0.25
    found = rws_jax.posterior_predictive(key(1), PARAMS, regression, weighted, x)
    assert found.keys() == {"y", "loc"}
    check_moments(found["y"], weighted, *expected)
    check_moments(found["loc"], weighted, expected[0], expected[1] - 0.25)
    theirs = Predictive(regression, weighted.resample(key(2), NUM), params=PARAMS, parallel=True)(key(3), x)
    check_moments(theirs["y"], weighted, *expected)


def test_draws_are_those_of_the_resampled_particles_whatever_is_passed_as_data():
    """However they run, and whether there are real data, other ones or none."""
    weighted = regression_samples(64)
    draw = lambda *args, **options: rws_jax.posterior_predictive(
        key(1), PARAMS, regression, weighted, *args, num_samples=6, **options
    )
    found = draw(X)
    assert {name: value.shape for name, value in found.items()} == {"loc": (6, 3), "y": (6, 3)}
    for other in (
        draw(X, Y),
        draw(X, Y + 7.0),
        draw(X, y=Y),
        draw(X, chunk_size=4),
        draw(X, vectorize_particles=False),
    ):
        for name, value in found.items():
            np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-5)
    w = weighted.resample(jax.random.split(key(1))[0], 6)["w"]
    np.testing.assert_allclose(found["loc"], w @ X.T, rtol=1e-5)


def test_conditioned_covariates_stay_and_conditioned_data_do_not():
    def model():
        x = numpyro.sample("x", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("f", -(z**2))
        numpyro.sample("y", dist.Normal(z * x, 0.01).to_event(1))

    def guide():
        numpyro.sample("z", dist.Normal(1.0, 0.01))

    x = jnp.array([1.0, 2.0, 3.0])
    model = condition(model, {"x": x, "y": 5 * x})
    weighted = rws_jax.importance_sample(key(), {}, model, guide, num_particles=8)
    found = rws_jax.posterior_predictive(key(1), {}, model, weighted)
    assert list(found) == ["y"]
    np.testing.assert_allclose(found["y"], np.resize(x, (8, 3)), atol=0.3)


def test_masked_data_are_predicted_too():
    """What is missing is what one wants to know: NumPyro's Predictive draws it as well."""

    def model(x, seen):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 3), mask(mask=seen):
            numpyro.sample("x", dist.Normal(z, 0.01), obs=x)

    def guide(x, seen):
        numpyro.sample("z", dist.Normal(2.0, 0.01))

    args = jnp.array([2.0, 2.0, -99.0]), jnp.array([True, True, False])
    weighted = rws_jax.importance_sample(key(), {}, model, guide, *args, num_particles=8)
    found = rws_jax.posterior_predictive(key(1), {}, model, weighted, *args)
    np.testing.assert_allclose(found["x"], np.full((8, 3), 2.0), atol=0.2)


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, id="by paths"), pytest.param({"vectorize_particles": False}, id="one", marks=pytest.mark.slow)],
)
def test_what_a_sample_of_another_path_does_not_have_is_drawn_by_the_model(options):
    """With two components for all, those of samples that had one are left to the prior."""

    def model(x, all_two=False):
        k = numpyro.sample("k", dist.Bernoulli(0.5), infer={"branching": True})
        a = numpyro.sample("a", dist.Normal(jnp.zeros(2 if all_two else 1 + int(k)), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(a.sum(), 0.01), obs=x)

    def guide(x):
        k = numpyro.sample("k", dist.Bernoulli(0.5), infer={"branching": True})
        numpyro.sample("a", dist.Normal(10.0 * jnp.ones(1 + int(k)), 0.01).to_event(1))

    weighted = rws_jax.importance_sample(key(), {}, model, guide, 15.0, num_particles=32)
    weighted = dataclasses.replace(weighted, log_weights=jnp.zeros(32))
    draw = lambda *args: rws_jax.posterior_predictive(key(1), {}, model, weighted, *args, **options)["x"]
    k = weighted.resample(jax.random.split(key(1))[0], 32)["k"]
    assert 8 < k.sum() < 24
    np.testing.assert_allclose(draw(15.0), 10 * (1 + k), atol=0.2)
    x = draw(15.0, True)
    np.testing.assert_allclose(x[k == 1], 20, atol=0.2)
    drawn = np.asarray(x[k == 0] - 10)
    assert 0.3 < drawn.std() < 2
    assert abs(drawn.mean()) < 5 / np.sqrt(8)


# What cannot be right is an error


def check(error, *parts):
    for part in ("expected:", "found:", "hint:", *parts):
        assert part in str(error.value), str(error.value)


def test_a_latent_of_another_size_is_named_and_what_to_do():
    case = exact.hierarchical()
    weighted = inferred(case, 8)
    with pytest.raises(ValueError, match="latent site 'z', in plate 'groups', are of another shape") as error:
        predicted(case, weighted, jnp.zeros(5))
    check(error, "shape (5,)", "shape (3,)", "draw_anew=['z']", "importance_sample")
    with pytest.raises(ValueError, match="latent site 'z', in plate 'groups', are of another shape") as error:
        rws_jax.to_arviz(weighted, key(1), case.params, case.model, jnp.zeros(5))
    check(error, "hint:     run importance_sample on these data")  # to_arviz draws no latent
    assert "draw_anew" not in str(error.value)


def walk(times, x=None):
    def step(z, time_and_x):
        z = numpyro.sample("z", dist.Normal(z, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.01), obs=time_and_x[1])
        return z, None

    scan(step, 0.0, (times, x))


def walk_guide(times, x):
    scan(lambda z, x: (numpyro.sample("z", dist.Normal(x, 0.01)), None), 0.0, x)


def test_more_steps_of_scan_are_not_those_that_were_sampled():
    weighted = rws_jax.importance_sample(key(), {}, walk, walk_guide, jnp.arange(3), jnp.ones(3), num_particles=8)
    found = rws_jax.posterior_predictive(key(1), {}, walk, weighted, jnp.arange(3))
    np.testing.assert_allclose(found["x"], np.ones((8, 3)), atol=0.2)
    with pytest.raises(ValueError, match="latent site 'z' are of another shape") as error:
        rws_jax.posterior_predictive(key(1), {}, walk, weighted, jnp.arange(4))
    check(error, "shape (4,)", "shape (3,)")


def test_samples_of_another_model_are_refused():
    weighted = inferred(exact.one_gaussian(), 8)
    with pytest.raises(ValueError, match="the model has no site 'z'") as error:
        rws_jax.posterior_predictive(key(1), PARAMS, regression_guide, weighted, X)
    check(error, "['w']", "not the guide")


def test_data_axes_are_those_of_the_samples():
    case = exact.branching()
    weighted = inferred(case, 4)
    with pytest.raises(ValueError, match="posterior samples are not those of the data") as error:
        predicted(case, weighted, jnp.zeros(5))
    check(error, "3 data", "5 data along data_axes")
    case = exact.one_gaussian()
    with pytest.raises(ValueError, match="posterior samples are not those of the data") as error:
        predicted(case, inferred(case, 4), data_axes=0)
    check(error, "data_axes=None")


@pytest.mark.usefixtures("allow_key_reuse")  # by NumPyro's subsampling
def test_a_random_minibatch_is_not_known():
    def model(x):
        with numpyro.plate("data", 5, subsample_size=2) as rows:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with numpyro.plate("data", 5, subsample_size=2):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    x = jnp.arange(5.0)
    weighted = rws_jax.importance_sample(key(), {}, model, guide, x, num_particles=8)
    with pytest.raises(ValueError, match="site 'z' is in plate 'data', of which each run draws a minibatch") as error:
        rws_jax.posterior_predictive(key(1), {}, model, weighted, x)
    check(error, "numpyro.handlers.substitute(model, {'data': indices})")
    model, guide = (substitute(program, {"data": jnp.array([1, 3])}) for program in (model, guide))
    weighted = rws_jax.importance_sample(key(), {}, model, guide, x, num_particles=8)
    assert rws_jax.posterior_predictive(key(1), {}, model, weighted, x)["x"].shape == (8, 2)


def minibatch(x, use=lambda rows: 0.0):
    with numpyro.plate("data", 50, subsample_size=len(x)) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 10.0))
        numpyro.sample("x", dist.Normal(z + use(rows), 0.01), obs=x)


def minibatch_guide(x):
    with numpyro.plate("data", 50, subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(x, 0.01))


@pytest.mark.usefixtures("allow_key_reuse")  # by NumPyro's subsampling
def test_a_minibatch_that_is_passed_is_known():
    """Which indices the plate draws does not matter to a program that does not use them."""
    x = jnp.arange(3.0)
    weighted = rws_jax.importance_sample(key(), {}, minibatch, minibatch_guide, x, num_particles=8)
    found = rws_jax.posterior_predictive(key(1), {}, minibatch, weighted, x)
    np.testing.assert_allclose(found["x"], np.resize(x, (8, 3)), atol=0.2)
    for use in (
        lambda rows: rows / 50,
        lambda rows: jnp.where(rows < 20, 0.0, 1.0),
        lambda rows: numpyro.param("loc", jnp.zeros(50), event_dim=0),
    ):
        with pytest.raises(ValueError, match="draws a minibatch whose rows matter") as error:
            rws_jax.posterior_predictive(key(1), {"loc": jnp.zeros(50)}, minibatch, weighted, x, use)
        check(error, "do not use the indices of the plate")
    with pytest.raises(ValueError, match="minibatch of plate 'data' of the model is larger than the plate") as error:
        rws_jax.posterior_predictive(key(1), {}, minibatch, weighted, jnp.zeros(70))
    check(error, "at most 50 data", "subsample_size=70")


def test_wrong_arguments_are_named():
    weighted = regression_samples(8)
    with pytest.raises(TypeError, match="posterior_predictive is given no weighted samples") as error:
        rws_jax.posterior_predictive(key(1), PARAMS, regression, regression_guide, X)
    check(error, "found:    function", "no guide is passed")
    with pytest.raises(TypeError, match="the model does not take these arguments") as error:
        rws_jax.posterior_predictive(key(1), PARAMS, regression, weighted, regression_guide, X, Y)
    check(error, "(x, y=None)", "'regression_guide', and 2 more", "no guide is passed")
    with pytest.raises(ValueError, match="posterior_predictive draws nothing") as error:
        rws_jax.posterior_predictive(key(1), PARAMS, regression_guide, weighted, X)
    check(error, "no sites but ['w']", "not the guide")
    with pytest.raises(ValueError, match="option 'draw_anew' names 'y'") as error:
        rws_jax.posterior_predictive(key(1), PARAMS, regression, weighted, X, draw_anew=["y"])
    check(error, "['w']")
    with pytest.raises(ValueError, match="option 'num_samples' is too small"):
        rws_jax.posterior_predictive(key(1), PARAMS, regression, weighted, X, num_samples=0)
