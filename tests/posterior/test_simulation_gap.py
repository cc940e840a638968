"""How unlike data are to dreams: p-values are uniform where data come from the model, whatever the guide."""

import math

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.autoguide import AutoNormal
from scipy import stats

import rws_jax
from rws_jax.posterior.dreams import p_values
from tests import models
from tests.posterior.test_evaluate import branching_guide, branching_model, plate_guide, plate_model, refused

SCALE = math.sqrt(2.0)
PARAMS = {"m": 0.3, "slope": 0.6}


def bad_guide(x):
    """Its draws go against the data, and its tails are too light."""
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(0.3 - numpyro.param("slope", 0.6) * x / 2, 0.5))


def gap(*args, **kwargs):
    return rws_jax.simulation_gap(jax.random.key(0), *args, **kwargs)


def of_model(num, seed=0):
    return np.random.default_rng(seed).normal(0.3, SCALE, num).astype(np.float32)


@pytest.mark.parametrize("guide", [plate_guide, pytest.param(bad_guide, marks=pytest.mark.slow)])
@pytest.mark.parametrize("exchangeable", [False, True], ids=["own", "all"])
def test_p_values_are_uniform_where_data_come_from_the_model(guide, exchangeable):
    """Kolmogorov and Smirnov's test of 600 units: one false alarm in 1,000 for each of two kinds of p-values."""
    result = gap(
        PARAMS, plate_model, guide, of_model(600), num_simulations=199, num_particles=5, exchangeable=exchangeable
    )
    for values in (result.p_values, result.ess_p_values):
        assert values.shape == (600,)
        assert stats.kstest(values, "uniform").pvalue > 1e-3
        assert values.min() >= 1 / (1 + 199 * (600 if exchangeable else 1))


def test_data_that_the_model_does_not_dream_are_found():
    x = of_model(50)
    x[17] = 9.0
    result = gap(PARAMS, plate_model, plate_guide, x, num_simulations=999, num_particles=20)
    others = np.delete(result.p_values, 17)
    assert result.order[0] == 17
    assert result.p_values[17] == 0.001
    assert result.ess_p_values[17] <= 0.01
    assert np.sum(others <= 0.01) <= 3
    assert stats.kstest(others, "uniform").pvalue > 1e-3
    exact = lambda x: 2 * stats.norm.sf(abs(x - 0.3) / SCALE)  # of log evidence, known exactly
    assert np.abs(others - exact(np.delete(x, 17))).mean() < 0.08  # of 20 particles, and 999 dreams
    lines = repr(result).splitlines()
    assert lines[0] == "SimulationGap of 50 units, each against 999 dreams of its own, 20 particles"
    assert "of 50 have p <= 0.01 (0.5 expected, chance of as many" in lines[1]
    below = result.dreamt_log_evidence[:, 17].min() - result.log_evidence[17]
    assert below > 10
    assert lines[3].startswith(f"  most unlike   17 (p = 0.001, {below:.0f} nats below all 999 dreams), ")
    assert lines[3].count("nats below") == 1


@pytest.mark.slow
def test_a_model_that_is_wrong_of_all_data_is_found():
    x = np.random.default_rng(0).normal(0.3, 2 * SCALE, 200).astype(np.float32)
    result = gap(PARAMS, plate_model, plate_guide, x, num_simulations=99, num_particles=10)
    assert np.sum(result.p_values <= 0.01) > 20  # 39 are expected: 2 P(|N(0, 2)| > 2.58)
    assert p_values.chance_of_as_many(20, 200, 0.01) < 1e-6


def test_dreams_are_weighed_as_data_are():
    """Of the model's own data, real or dreamt, the mean of log evidence is minus their entropy."""
    x = of_model(2000)
    result = gap(PARAMS, plate_model, plate_guide, x, num_simulations=2, num_particles=200)
    entropy = 0.5 * math.log(2 * math.pi * 2.0) + 0.5
    for values in (result.log_evidence, *result.dreamt_log_evidence):
        assert abs(values.mean() + entropy) < 5 * stats.sem(values)
    exact = stats.norm.logpdf(x, 0.3, SCALE)
    assert np.sqrt(np.mean((result.log_evidence - exact) ** 2)) < 0.1


def scaled_model(x, scale):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z * scale, scale), obs=x)


def scaled_guide(x, scale):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(0.5 * x / scale, 0.8))


def test_units_with_covariates_are_compared_with_dreams_of_their_own():
    scale = np.repeat(np.float32([0.1, 10.0]), 150)
    x = (np.random.default_rng(0).normal(0.0, SCALE, 300) * scale).astype(np.float32)
    options = {"num_simulations": 99, "num_particles": 5}
    result = gap({}, scaled_model, scaled_guide, x, scale, **options)
    for values in (result.p_values[:150], result.p_values[150:]):
        assert stats.kstest(values, "uniform").pvalue > 1e-3
    with pytest.warns(UserWarning, match="dreams of different units differ in their log evidence"):
        pooled = gap({}, scaled_model, scaled_guide, x, scale, exchangeable=True, **options)
    assert stats.kstest(pooled.p_values[:150], "uniform").pvalue < 1e-6  # as it says


@pytest.mark.slow
def test_it_does_not_depend_on_chunks():
    x, options = of_model(7), {"num_simulations": 10, "num_particles": 6}
    at_once, chunked = (gap(PARAMS, plate_model, plate_guide, x, chunk_size=size, **options) for size in (None, 4))
    np.testing.assert_allclose(chunked.dreamt_log_evidence, at_once.dreamt_log_evidence, rtol=1e-5)
    np.testing.assert_array_equal(chunked.p_values, at_once.p_values)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"vectorize_particles": False}], ids=str)
def test_programs_of_one_datum_that_branch(options):
    x, num = np.float32([0.5, -1.0, 30.0]), 4 if options else 19
    result = gap(
        {"slope": 0.05},
        branching_model,
        branching_guide,
        x,
        num_simulations=num,
        num_particles=4,
        data_axes=0,
        **options,
    )
    assert result.dreamt_log_evidence.shape == (num, 3)
    assert result.p_values[2] == 1 / (1 + num)
    assert result.p_values[:2].min() > 0.1


def test_programs_of_one_datum_have_dreams_of_each():
    """Mapped over data, with a covariate that goes along: p-values are uniform."""

    def model(x, scale):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z * scale, scale), obs=x)

    def guide(x, scale):
        numpyro.sample("z", dist.Normal(0.5 * x / scale, 0.8))

    scale = np.linspace(0.1, 10.0, 300, dtype=np.float32)
    x = (np.random.default_rng(0).normal(0.0, SCALE, 300) * scale).astype(np.float32)
    x[5] = 10 * scale[5]
    options = {"num_simulations": 99, "num_particles": 5, "chunk_size": 1000}
    result = gap({}, model, guide, x, scale, data_axes=(0, 0), **options)
    assert stats.kstest(result.p_values, "uniform").pvalue > 1e-3
    assert result.order[0] == 5
    assert abs(np.corrcoef(np.log(scale), result.dreamt_log_evidence.mean(axis=0))[0, 1]) > 0.9


@pytest.mark.slow
@pytest.mark.usefixtures("allow_key_reuse")
def test_a_minibatch_is_dreamt_and_weighed_free_of_its_scale():
    model, guide = models.minibatch(models.one_model), models.minibatch(models.one_guide)
    params, x = {"mu": 0.2, "a": 0.3, "c": 0.7}, np.float32([0.1, 0.2, 9.0])
    result = gap(params, model, guide, x, num_simulations=199, num_particles=50)
    assert result.p_values[2] == 1 / 200
    entropy = 0.5 * math.log(2 * math.pi * 1.25) + 0.5
    dreamt = result.dreamt_log_evidence.ravel()
    assert abs(dreamt.mean() + entropy) < 5 * stats.sem(dreamt)


def test_programs_without_a_plate_have_one_p_value():
    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(x.sum() / 4, 0.6))

    result = gap({}, model, guide, np.float32([4.0, -4.0, 4.0]), num_simulations=99, num_particles=5)
    assert result.p_values.shape == ()
    assert result.p_values == 0.01
    _, evidence, ess, last = repr(result).splitlines()
    assert evidence.startswith("  log evidence  p = 0.01, ")
    assert evidence.endswith(" nats below all 99 dreams")
    assert ess == f"  ESS           p = {result.ess_p_values:.2g}"
    assert "all data are one unit" in last


def test_nan_is_not_ranked_and_leaves_the_others_alone():
    x = of_model(20)
    options = {"num_simulations": 99, "num_particles": 5}
    good = gap(PARAMS, plate_model, plate_guide, x, **options)
    with_nan = gap(PARAMS, plate_model, plate_guide, np.where(np.arange(20) == 3, np.float32(np.nan), x), **options)
    assert np.isnan(with_nan.p_values[3])
    np.testing.assert_array_equal(np.delete(with_nan.p_values, 3), np.delete(good.p_values, 3))
    assert "1 with NaN among data or log-weights, which are not ranked" in repr(with_nan)
    assert with_nan.order[-1] == 3


def test_a_covariate_that_is_nan_has_no_p_value():
    """All weights are zero, in reality and in all dreams: equal, and so far from unlike that p would be 1."""
    x, scale = of_model(4), np.float32([1.0, np.nan, 1.0, 1.0])
    for exchangeable in (False, True):
        options = {"num_simulations": 19, "num_particles": 5, "exchangeable": exchangeable}
        with numpyro.validation_enabled(False):  # NumPyro would refuse them
            result = gap({}, scaled_model, scaled_guide, x, scale, **options)
        assert np.isneginf(result.log_evidence[1])
        for values in (result.p_values, result.ess_p_values):
            assert np.isnan(values).tolist() == [False, True, False, False]
        assert result.order[-1] == 1
        assert "\n  1 with dreams all of weight zero, which are not ranked: covariates may be NaN." in repr(result)


def test_hand_numbers():
    p = p_values.lower_p_values
    simulated = np.array([[1.0, 5.0], [2.0, 6.0], [3.0, np.nan]])
    np.testing.assert_array_equal(p(np.array([2.0, 0.0]), simulated), [3 / 4, 2 / 4])  # equal counts; NaN is lowest
    np.testing.assert_array_equal(p(np.array([0.5, 9.0]), simulated), [1 / 4, 1.0])
    np.testing.assert_array_equal(p(np.array([2.0, 0.0]), simulated, pooled=True), [4 / 7, 2 / 7])
    assert np.isnan(p(np.array([np.nan]), simulated[:, :1]))
    none = np.array([[1.0, -np.inf], [2.0, np.nan]])  # of the second unit
    np.testing.assert_array_equal(p(np.array([1.5, 3.0]), none), [2 / 3, np.nan])
    np.testing.assert_array_equal(p(np.array([1.5, 3.0]), none, pooled=True), [2 / 3, np.nan])
    assert p_values.expected_share(0.01, 99) == 0.01
    assert p_values.expected_share(0.01, 199) == 0.01
    assert p_values.expected_share(0.01, 250) == 2 / 251
    assert p_values.expected_share(0.01, 50) == 0.0
    assert p_values.chance_of_as_many(15, 1000, 0.01) == pytest.approx(stats.binom.sf(14, 1000, 0.01), rel=1e-4)
    assert p_values.chance_of_as_many(0, 10, 0.01) == 1.0
    values = np.random.default_rng(0).poisson(3.0, (30, 4)) + np.array([0, 0, 1, 2])
    assert p_values.p_value_of_equal_units(values) == pytest.approx(stats.kruskal(*values.T).pvalue, rel=1e-3)
    assert p_values.p_value_of_equal_units(np.ones((3, 4))) == 1.0


def test_numbers_that_are_expected_have_two_digits_or_all_before_the_point():
    values = {50: "0.5", 234: "2.3", 12_345: "123"}
    for num, expected in values.items():
        real, dreamt = np.zeros(num), np.ones((999, num))
        result = rws_jax.SimulationGap(real + 0.5, real + 0.5, real, real, dreamt, dreamt, 2, exchangeable=False)
        assert f"({expected} expected, chance of as many 1)" in repr(result)


def test_few_dreams_say_so():
    few = np.zeros((9, 3))
    result = rws_jax.SimulationGap(few[0], few[0], few[0], few[0], few, few, 2, exchangeable=False)
    text = repr(result)
    assert "no p-value can be below 0.1; 99 dreams would do" in text
    one = rws_jax.SimulationGap(
        np.array([0.1]), np.array([0.4]), -few[0, :1], few[0, :1], few[:, :1] + 1.0, few[:, :1], 2, exchangeable=False
    )
    assert repr(one).splitlines()[1:] == [
        "  log evidence  p = 0.1; no p-value can be below 0.1; 99 dreams would do, 1 nats below all 9 dreams",
        "  ESS           p = 0.4; no p-value can be below 0.1; 99 dreams would do",
    ]


def test_a_guide_that_reads_no_data_has_no_verdict():
    """It may be the prior, and exact p-values, or fitted to these data: which of them is not known."""

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(numpyro.param("at", np.zeros(3)), 1.0))

    params = {"m": 0.3, "at": np.zeros(3)}
    call = lambda guide: gap(params, plate_model, guide, of_model(3), num_simulations=99, num_particles=5)
    with pytest.warns(UserWarning, match="simulation_gap: the guide 'guide' reads no data") as caught:
        result = call(guide)
    assert caught[0].filename == __file__
    first, second, *_ = repr(result).splitlines()
    assert first.endswith("5 particles: NO VERDICT, as the guide reads no data")
    assert "fitted to these data" in second
    what = "simulation_gap cannot test the automatic guide 'AutoNormal'"
    refused(ValueError, lambda: call(AutoNormal(plate_model)), what, "one data set", "posterior_predictive")


def test_what_is_of_the_wrong_kind_is_refused():
    call = lambda *args, **options: lambda: gap(PARAMS, *(args or (plate_model, plate_guide)), of_model(3), **options)
    refused(ValueError, call(num_simulations=0), "option 'num_simulations' is too small")
    refused(TypeError, call(num_particles=1.5), "option 'num_particles' has the wrong type")
    refused(TypeError, call(exchangeable=1), "option 'exchangeable' has the wrong type")
    refused(TypeError, call(insomnia=0.5), "simulation_gap has no option 'insomnia'")
    traced = lambda key: rws_jax.simulation_gap(key, PARAMS, plate_model, plate_guide, of_model(3)).p_values
    refused(
        TypeError, lambda: jax.jit(traced)(jax.random.key(0)), "simulation_gap is called inside of jit, scan or vmap"
    )
