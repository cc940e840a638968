"""Methods of weighted samples against small arrays worked out by hand, and the messages of `importance_sample`."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import constraints
from numpyro.infer import Predictive

import rws_jax
from tests.posterior import exact
from tests.posterior.exact import key

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")
INF = jnp.inf


def weighted(log_w, z, **more):
    """Particles of units in plate "data", with one number each."""
    dims = (("z", ("data",)),)
    return rws_jax.WeightedSamples({"z": jnp.asarray(z)}, jnp.asarray(log_w, float), {}, dims, ("data",), **more)


def by_hand():
    """Weights 1, 3 and 0 in the first unit, equal ones in the second."""
    return weighted(jnp.log(jnp.array([[1.0, 2.0], [3.0, 2.0], [0.0, 2.0]])), [[4.0, 1.0], [8.0, 2.0], [jnp.nan, 6.0]])


def test_numbers_worked_out_by_hand():
    w = by_hand()
    np.testing.assert_allclose(w.weights, [[0.25, 1 / 3], [0.75, 1 / 3], [0.0, 1 / 3]], rtol=1e-6)
    evidence = w.log_evidence()
    np.testing.assert_allclose(evidence.value, np.log([4 / 3, 2.0]), rtol=1e-6)
    spread = (0.25 - 1 / 3) ** 2 + (0.75 - 1 / 3) ** 2 + (1 / 3) ** 2
    np.testing.assert_allclose(evidence.standard_error, [np.sqrt(1.5 * spread), 0.0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(w.effective_sample_size(), [1.6, 3.0], rtol=1e-6)
    mean = w.expectation()
    np.testing.assert_allclose(mean.value["z"], [7.0, 3.0], rtol=1e-6)
    first = 1.5 * (0.25**2 * 3.0**2 + 0.75**2 * 1.0**2)
    second = 1.5 * (2.0**2 + 1.0**2 + 3.0**2) / 9
    np.testing.assert_allclose(mean.standard_error["z"], np.sqrt([first, second]), rtol=1e-6)
    quantiles = w.quantile([0.0, 0.25, 0.26, 0.5, 1.0])["z"]
    np.testing.assert_array_equal(quantiles, [[4.0, 1.0], [4.0, 1.0], [8.0, 1.0], [8.0, 2.0], [8.0, 6.0]])


def test_quantiles_of_equal_weights_are_those_of_numpy():
    z = np.random.default_rng(0).normal(size=(101, 2)).astype(np.float32)
    levels = [0.05, 0.5, 0.951]
    found = weighted(jnp.zeros((101, 2)), z).quantile(levels)["z"]
    np.testing.assert_array_equal(found, np.quantile(z, levels, axis=0, method="inverted_cdf"))


@pytest.mark.parametrize("method", ["systematic", "multinomial"])
def test_resampling_is_unbiased(method):
    """Counts over many draws follow the weights; systematic ones are within one of their expectation in each draw."""
    w = weighted(jnp.log(jnp.array([[1.0, 1.0], [2.0, 0.0], [5.0, 3.0]])), jnp.array([[0, 0], [1, 1], [2, 2]]))
    num, expected = 6, 6 * np.asarray(w.weights)
    draw = jax.vmap(lambda rng_key: w.resample(rng_key, num, method)["z"])
    counts = np.asarray(jnp.sum(draw(jax.random.split(key(), 2000))[:, None] == jnp.arange(3)[:, None, None], axis=2))
    error = np.sqrt(num * np.asarray(w.weights) * (1 - np.asarray(w.weights)) / 2000)
    assert np.all(np.abs(counts.mean(axis=0) - expected) <= 5 * error + 1e-6)
    assert (np.max(np.abs(counts - expected)) < 1) == (method == "systematic")


def test_units_are_resampled_independently_and_in_random_order():
    z = jnp.broadcast_to(jnp.arange(1000.0)[:, None], (1000, 2))
    samples = np.asarray(weighted(jnp.zeros((1000, 2)), z).resample(key(), 1000)["z"])
    assert np.abs(np.corrcoef(samples.T)[0, 1]) < 0.15
    assert np.abs(np.corrcoef(samples[1:, 0], samples[:-1, 0])[0, 1]) < 0.15


def test_a_dead_unit_leaves_the_others_alone():
    w = weighted([[-INF, 0.0], [-INF, 1.0]], [[1.0, 2.0], [3.0, 4.0]])
    alone = weighted([[0.0], [1.0]], [[2.0], [4.0]])
    assert w.log_evidence().value[0] == -INF
    assert np.isnan(w.log_evidence().standard_error[0])
    assert w.effective_sample_size()[0] == 0.0
    assert np.isnan(w.expectation().value["z"][0])
    assert np.isnan(w.quantile(0.5)["z"][0])
    with pytest.warns(UserWarning, match=r"No particle has a weight above zero: 1 unit of 2, \[0\] the first"):
        samples = w.resample(key(), 5)["z"]
    assert np.all(np.isnan(samples[:, 0]))
    assert np.all(np.isfinite(samples[:, 1]))
    for name in "log_evidence", "expectation":
        ours, theirs = jax.tree.leaves(getattr(w, name)()), jax.tree.leaves(getattr(alone, name)())
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine[1:], other, rtol=1e-6)
    many = weighted(jnp.stack([jnp.full(100, -INF), jnp.linspace(0.0, 1.0, 100)], axis=1), jnp.zeros((100, 2)))
    k = many.pareto_k()  # without a warning: a dead unit has no tail to be warned of
    assert k[0] == INF
    assert k[1] < 0.7


@pytest.mark.parametrize("others", [0.0, jnp.nan])
def test_a_nan_stays_in_its_unit(others):
    w = weighted([[jnp.nan, 0.0], [others, 1.0]], [[1.0, 2.0], [3.0, 4.0]])
    for leaf in jax.tree.leaves((w.log_evidence(), w.expectation(), w.effective_sample_size(), w.quantile(0.5))):
        assert np.isnan(leaf[0])
        assert np.isfinite(leaf[1])
    assert "Weights of 1 unit, [0] the first, are no finite numbers." in repr(w)
    assert "nats in all of the other 1 unit" in repr(w)


def test_light_tails_are_warned_of_and_smoothed():
    """A guide of a third of the posterior's scale has weights of infinite variance."""
    z = jax.random.normal(key(), (20_000, 1)) / 3
    log_w = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.0, 1 / 3).log_prob(z)
    w = weighted(log_w, z)
    with pytest.warns(UserWarning, match=r"(?s)k-hat is above 0.7: .*defensive=0.2") as seen:
        k = w.pareto_k()
    assert seen[0].filename == __file__
    assert 0.7 < k[0] < 1.0
    with pytest.warns(UserWarning, match="k-hat"):
        smoothed = w.smoothed()
    assert smoothed.log_weights.shape == log_w.shape
    assert np.abs(smoothed.log_evidence().value[0]) < 0.2
    assert "or more" in repr(w)  # than what is estimated: no error is shown that would not hold


def test_the_exact_posterior_as_guide_has_equal_weights():
    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(x / 2, jnp.sqrt(0.5)))

    w = rws_jax.importance_sample(key(), {}, model, guide, jnp.array([0.0, 3.0]))
    np.testing.assert_allclose(w.effective_sample_size(), 1000.0, rtol=1e-4)
    assert np.all(w.pareto_k() < 0.7)
    assert repr(w).endswith("The weights show no heavy tail.")


def test_the_summary():
    case = exact.one_gaussian()
    w = rws_jax.importance_sample(key(), case.params, case.model, case.guide, *case.args)
    lines = repr(w).splitlines()
    assert lines[0] == "WeightedSamples: 1,000 particles of each of 3 units, the elements of plate 'data'"
    assert [line.split("  ")[1] for line in lines[1:5]] == [
        "latents",
        "log evidence",
        "effective sample size",
        "Pareto k-hat",
    ]
    joint = exact.hierarchical()
    text = repr(rws_jax.importance_sample(key(), {}, joint.model, joint.guide, *joint.args, num_particles=1))
    assert text.startswith(
        "WeightedSamples: 1 particle of one unit, all data together: no plate is common to all sites"
    )
    assert "not known of fewer than 25 particles" in text


def test_samples_go_into_predictive():
    case = exact.one_gaussian()
    given = case.params, case.model, case.guide, *case.args
    for samples in (
        rws_jax.sample_posterior(key(), *given, num_samples=50),
        rws_jax.sample_posterior(key(), *given, num_samples=50, num_particles=100),
        rws_jax.importance_sample(key(), *given).resample(key(1), 50),
    ):
        assert samples["z"].shape == (50, 3)
        params = jax.tree.map(jnp.asarray, case.params)
        predictive = Predictive(numpyro.handlers.uncondition(case.model), samples, params=params)
        assert predictive(key(2), *case.args)["x"].shape == (50, 3)


def test_guide_samples_are_those_that_are_weighed():
    case = exact.branching()
    given = case.params, case.model, case.guide, *case.args
    own = rws_jax.sample_posterior(key(), *given, num_samples=5, data_axes=0)
    weighed = rws_jax.importance_sample(key(), *given, num_particles=5, data_axes=0)
    np.testing.assert_allclose(own["a"], weighed.samples["a"])


# Misuse


def scaled_model(x):
    scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, scale))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def scaled_guide(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0) * x, 1.0))


X = jnp.array([0.0, 1.0])


def call(params, x=X, model=scaled_model, guide=scaled_guide, **options):
    return rws_jax.importance_sample(key(), params, model, guide, x, **options)


def test_values_of_a_state_are_not_taken_for_parameters():
    rws = rws_jax.make_step(scaled_model, scaled_guide, theta_optimizer=optax.sgd(0.1))
    state = rws.init(key(), X)
    state = state._replace(theta=state.theta | {"scale": jnp.array(-1.0)})
    with pytest.raises(TypeError, match=r"(?s)values of params are taken from a state.*rws.get_params"):
        call(state.theta | state.phi)
    with pytest.raises(TypeError, match=r"(?s)params is not a dict.*rws.get_params\(state, \*args\) gives"):
        call(state)
    right = rws.get_params(state, X)
    assert call(right).log_weights.shape == (1000, 2)
    with pytest.raises(ValueError, match=r"(?s)param site 'scale' of the model is outside of its constraint.*-1"):
        call({**state.theta, **state.phi})  # a dict made by hand has lost its type, and its values are checked
    assert call(right).log_weights.shape == (1000, 2)


def test_parameters_that_branching_programs_are_given_are_checked_as_well():
    def model(x):
        scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
        k = numpyro.sample("k", dist.Bernoulli(0.5), infer={"branching": True})
        numpyro.sample("x", dist.Normal(3.0 if k else 0.0, scale), obs=x)

    def guide(x):
        numpyro.sample("k", dist.Bernoulli(0.5), infer={"branching": True})

    with pytest.raises(ValueError, match="outside of its constraint"):
        call({"scale": -1.0}, model=model, guide=guide, data_axes=0)


MISTAKES = [
    pytest.param({"scale": 1.0}, {}, ValueError, "param site 'a' of the guide has no value", id="no parameter"),
    pytest.param({}, {"model": numpyro.handlers.seed(scaled_model, 0)}, ValueError, "model is seeded", id="seeded"),
    pytest.param({}, {"num_particles": 0}, ValueError, "'num_particles' is too small", id="no particles"),
    pytest.param({}, {"insomnia": 0.5}, TypeError, "importance_sample has no option 'insomnia'", id="option of others"),
    pytest.param({"scale": 1.0, "a": 0.0}, {"x": X[:0]}, ValueError, "plate has no elements", id="no data"),
]


@pytest.mark.parametrize(("params", "changes", "kind", "message"), MISTAKES)
def test_mistakes_are_named(params, changes, kind, message):
    with pytest.raises(kind, match=message):
        call(params, **changes)


def test_mistakes_in_methods_are_named():
    w = by_hand()
    with pytest.raises(ValueError, match="level of quantile is out of range"):
        w.quantile(95)
    with pytest.raises(ValueError, match=r"(?s)'method' of resample.*systematic"):
        w.resample(key(), 10, "stratified")
    with pytest.raises(TypeError, match="first argument of resample is not a random key"):
        w.resample(10, key())
    with pytest.raises(TypeError, match="pareto_k is called inside of jit"):
        jax.jit(lambda w: w.pareto_k())(w)


def test_one_particle_and_no_data_by_the_axis_of_data():
    params = {"scale": 1.0, "a": 0.0}
    one = call(params, num_particles=1)
    np.testing.assert_allclose(one.log_evidence().value, one.log_weights[0], rtol=1e-6)
    assert np.all(np.isnan(one.log_evidence().standard_error))
    np.testing.assert_array_equal(one.effective_sample_size(), 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.all(one.pareto_k() == INF)
    none = rws_jax.importance_sample(
        key(),
        {},
        lambda x: numpyro.sample("z", dist.Normal(x, 1.0)),
        lambda x: numpyro.sample("z", dist.Normal(x, 1.0)),
        X[:0],
        data_axes=0,
    )
    assert none.log_evidence().value.shape == (0,)
    assert "each of 0 data" in repr(none)


def test_samples_of_several_calls_are_not_taken_for_those_of_one():
    params = {"scale": 1.0, "a": 0.0}
    several = jax.vmap(lambda rng_key: rws_jax.importance_sample(rng_key, params, scaled_model, scaled_guide, X))(
        jax.random.split(key(), 3)
    )
    for method in "log_evidence", "effective_sample_size", "expectation":
        with pytest.raises(ValueError, match=r"(?s)of several calls, as jax.vmap returns them.*\(3, 1000, 2\)"):
            getattr(several, method)()
    assert jax.vmap(lambda w: w.log_evidence())(several).value.shape == (3, 2)
    assert repr(several) == "WeightedSamples(log_weights of shape (3, 1000, 2))"


def test_values_of_parameters_have_the_shape_of_their_site_and_may_be_numpys():
    for number in np.float32(1.0), np.array(1.0), 1:
        assert call({"scale": number, "a": number}).log_weights.shape == (1000, 2)
    in_place = np.array(1.0)
    call({"scale": in_place, "a": 0.0})
    in_place[...] = -1.0
    with pytest.raises(ValueError, match="outside of its constraint"):
        call({"scale": in_place, "a": 0.0})
    with pytest.raises(ValueError, match=r"(?s)param site 'a' of the guide has another shape.*\(\).*\(2,\)"):
        call({"scale": 1.0, "a": jnp.zeros(2)})


def test_what_a_particle_does_not_have_is_no_number_of_its_site():
    """P(n = 0 and there) is exact; where z is 0 there is no n, which is neither zero nor any other count."""

    def model(x):
        z = numpyro.sample("z", dist.Bernoulli(0.3), infer={"branching": True})
        n = numpyro.sample("n", dist.Binomial(2, 0.5)) if z else 2
        numpyro.sample("x", dist.Normal(n, 1.0), obs=x)

    def guide(x):
        if numpyro.sample("z", dist.Bernoulli(0.5), infer={"branching": True}):
            numpyro.sample("n", dist.Binomial(2, 0.5))

    density = np.exp(-0.5 * (1.5 - np.arange(3.0)) ** 2)
    there = 0.3 * np.array([0.25, 0.5, 0.25]) * density
    exact_share = there[0] / (there.sum() + 0.7 * density[2])
    w = rws_jax.importance_sample(key(), {}, model, guide, 1.5, num_particles=20_000)
    found = w.expectation(lambda z: z["n"] == 0)
    assert abs(found.value - exact_share) < 5 * found.standard_error
    samples = w.resample(key(1), 20_000)
    share = np.mean(samples["n"] == 0)
    assert abs(share - exact_share) < 5 * np.sqrt(exact_share / w.effective_sample_size())
    np.testing.assert_array_equal(samples["n"] < 0, samples["z"] == 0)


def test_a_plate_may_be_named_datum():
    def model(x):
        with numpyro.plate("datum", 2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("datum", 2):
            numpyro.sample("z", dist.Normal(x / 2, 1.0))

    w = rws_jax.importance_sample(key(), {}, model, guide, jnp.zeros((3, 2)), data_axes=0, num_particles=30)
    assert w.units == ("datum_", "datum")
    assert w.expectation().value["z"].shape == (3, 2)


def test_a_constant_of_a_unit_is_that_of_the_unit():
    """As with obs=: evidence of each unit, and a constant that is NaN, are its own."""

    def model(x, t=None):
        with numpyro.plate("data", len(x)):
            numpyro.sample("t", dist.Normal(0.0, 1.0), obs=t)
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, t=None):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(x / 2, 1.0))

    x = jnp.array([0.0, 3.0])
    for t in x, x.at[1].set(jnp.nan):
        observed = rws_jax.importance_sample(key(), {}, model, guide, x, t)
        given = rws_jax.importance_sample(key(), {}, numpyro.handlers.condition(model, {"t": t}), guide, x)
        np.testing.assert_allclose(given.log_evidence().value, observed.log_evidence().value, rtol=1e-5)
