"""Simulation-based calibration: exact posteriors pass, guides that are off in any way do not."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import rws_jax
from rws_jax.estimators.scored import Scored
from rws_jax.estimators.sleep import Dream
from rws_jax.posterior.dreams import uniformity
from rws_jax.posterior.dreams.dreamt import Comparison
from rws_jax.posterior.dreams.ranking import RankStatistic, RankSummary, ranks_of
from rws_jax.programs.density import Units
from rws_jax.programs.run import Draws
from tests import models
from tests.checks.test_errors import check

calibrate = rws_jax.simulation_based_calibration
BRANCHES = {"branching": True}


# Two Gaussian latents, the posterior of which is known: z1 ~ N(0, 1), z2 ~ N(z1, 1), x ~ N(z2, 1)


def gaussian_model(x):
    z1 = numpyro.sample("z1", dist.Normal(0.0, 1.0))
    z2 = numpyro.sample("z2", dist.Normal(z1, 1.0))
    numpyro.sample("x", dist.Normal(z2, 1.0), obs=x)


def gaussian_guide(x):
    """Exact for width 1, shift 0 and reads 1."""
    width, shift, reads = (numpyro.param(name, value) for name, value in EXACT.items())
    z2 = numpyro.sample("z2", dist.Normal(2 * x / 3 + shift * (2 / 3) ** 0.5, width * (2 / 3) ** 0.5))
    # Without z2, z1 is drawn from its prior.
    numpyro.sample("z1", dist.Normal(reads * z2 / 2, width * (1 - reads / 2) ** 0.5))


EXACT = {"width": 1.0, "shift": 0.0, "reads": 1.0}


def gaussian(seed=0, guide=gaussian_guide, **options):
    params = {name: jnp.array(options.pop(name, value)) for name, value in EXACT.items()}
    return calibrate(jax.random.key(seed), params, gaussian_model, guide, 0.0, **options)


# A discrete latent of three values and one of two; the posterior is a table


JOINT = np.random.default_rng(3).dirichlet(np.ones(3 * 2 * 4)).reshape(3, 2, 4)  # p(a, b, x)


def table_model(x):
    a = numpyro.sample("a", dist.Categorical(jnp.array(JOINT.sum(axis=(1, 2)))))
    b = numpyro.sample("b", dist.Categorical(jnp.array(JOINT.sum(axis=2) / JOINT.sum(axis=(1, 2))[:, None])[a]))
    numpyro.sample("x", dist.Categorical(jnp.array(JOINT / JOINT.sum(axis=2)[:, :, None])[a, b]), obs=x)


def table_guide(x):
    """Exact for power 1, shift 0 and reads 1."""
    power, shift, reads = (numpyro.param(name, value) for name, value in TABLE_EXACT.items())
    of_x = jnp.array((JOINT / JOINT.sum(axis=(0, 1))).transpose(2, 0, 1))[x]
    log_p = jnp.log(jnp.where(reads == 1.0, of_x, jnp.array(JOINT.sum(axis=2)))) * power + shift * jnp.eye(3, 2)
    a = numpyro.sample("a", dist.Categorical(logits=jax.nn.logsumexp(log_p, axis=1)))
    numpyro.sample("b", dist.Categorical(logits=log_p[a]))


TABLE_EXACT = {"power": 1.0, "shift": 0.0, "reads": 1.0}


def table(seed=0, **options):
    params = {name: jnp.array(options.pop(name, value)) for name, value in TABLE_EXACT.items()}
    return calibrate(jax.random.key(seed), params, table_model, table_guide, 0, **options)


def of_one(guide, **options):
    return calibrate(jax.random.key(0), models.BY_HAND_THETA, models.one_model, guide, 0.0, **options)


WRONG = [
    pytest.param(gaussian, {"width": 0.7}, id="narrow"),
    pytest.param(gaussian, {"width": 1 / 0.7}, id="wide"),
    pytest.param(gaussian, {"shift": 0.3}, id="shifted"),
    pytest.param(gaussian, {"reads": 0.0}, id="independent"),
    pytest.param(table, {"power": 2.0}, id="discrete, narrow"),
    pytest.param(table, {"power": 0.4}, id="discrete, wide"),
    pytest.param(table, {"shift": 0.5}, id="discrete, shifted"),
    pytest.param(table, {"reads": 0.0}, id="discrete, independent"),
]


@pytest.mark.parametrize(("run", "wrong"), WRONG)
def test_wrong_guides_are_found(run, wrong):
    assert run(**wrong).p_value < 0.01


@pytest.mark.parametrize("run", [gaussian, table])
def test_the_posterior_passes(run):
    result = run()
    assert result.p_value > 0.01
    for name, coverage in result.coverage.items():
        standard_error = np.sqrt(result.levels * (1 - result.levels) / 1000)
        assert np.all(np.abs(coverage - result.levels) < 5 * standard_error), name


@pytest.mark.slow
@pytest.mark.parametrize("run", [gaussian, table])
def test_the_posterior_passes_for_every_seed(run):
    assert all(run(seed).p_value > 0.01 for seed in range(20))


def test_a_guide_that_reads_no_data_is_found_by_all_latents_alone():
    """Its draws have the marginal distribution of dreams: each latent passes, and so does log q."""
    guide = lambda x: numpyro.sample("z", dist.Normal(0.2, 1.0))
    with pytest.warns(UserWarning, match="'<lambda>' reads no data.*cannot be tested on dreams"):
        result = of_one(guide)
    assert result.p_values["z"] > 0.01
    assert result.density_p_values["log_q"] > 0.01
    assert result.density_p_values["log_p"] < 1e-6
    first, second, third, *_ = repr(result).splitlines()
    assert first == "Calibration by 1000 simulations, 99 draws each: NO VERDICT, as the guide reads no data"
    assert "fitted to one data set" in second
    assert "all together are not" in third


def test_a_guide_that_reads_data_on_some_paths_alone_reads_them():
    """The first dream of this key has no z."""

    def guide(x):
        if numpyro.sample("some", dist.Bernoulli(0.4), infer=BRANCHES):
            numpyro.sample("z", dist.MultivariateNormal(jnp.full(2, x / 3), jnp.eye(2) - jnp.ones((2, 2)) / 3))

    options = {"num_simulations": 4, "num_samples": 2, "vectorize_particles": False}
    assert calibrate(jax.random.key(2), {}, branching_model, guide, 0.0, **options).guide_reads


# Ranks


def test_ties_are_broken_so_that_ranks_are_exactly_uniform():
    """All of z*, z_1, ..., z_L from one distribution of three values: each rank has probability 1 / (L + 1)."""
    probabilities, num_samples = np.array([0.5, 0.2, 0.3]), 4
    ranks = np.zeros(num_samples + 1)
    for dream, *draws in itertools.product(range(3), repeat=num_samples + 1):
        below, tied = sum(draw < dream for draw in draws), draws.count(dream)
        ranks[below : below + tied + 1] += np.prod(probabilities[[dream, *draws]]) / (tied + 1)
    np.testing.assert_allclose(ranks, 1 / (num_samples + 1), atol=1e-12)


@pytest.mark.parametrize(("below", "tied"), [(0, 4), (1, 2), (2, 0), (3, 1)])
def test_a_rank_is_any_that_ties_allow(below, tied):
    num = 20_000
    ranks = ranks_of(jax.random.key(0), np.full(num, below), np.full(num, tied), 4)
    found = Counter(ranks.tolist())
    assert found.keys() == set(range(below, below + tied + 1))
    share = 1 / (tied + 1)
    assert all(abs(n / num - share) <= 5 * np.sqrt(share * (1 - share) / num) for n in found.values())


class NormalUpTo3(dist.Normal):
    """Its log density is NaN where the mean is above the limit, as 0 / 0 is."""

    limit = 3.0

    def log_prob(self, value):
        return jnp.where(self.loc > self.limit, jnp.nan, super().log_prob(value))


class NormalNowhere(NormalUpTo3):
    limit = -jnp.inf


@pytest.mark.parametrize(("weighted", "names"), [(False, "'log_p'"), (True, "'z', 'log_p', 'log_q'")])
def test_simulations_with_what_is_not_a_number_are_left_out(weighted, names):
    """A density of NaN has no rank; nor has a dream among draws one of which has a weight of NaN."""

    def run(fn):
        def model(x):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", fn(z, 1.0), obs=x)

        guide = lambda x: numpyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        return calibrate(jax.random.key(1), {}, model, guide, 0.0, weighted=weighted, num_simulations=500)

    with pytest.warns(UserWarning, match=f"of 500 simulations are left out, as comparisons of {names} are NaN: look"):
        found = run(NormalUpTo3)
    assert 300 < len(found.ranks["z"]) < 499
    assert found.ranks["z"].min() >= 0
    assert found.p_value > 1e-3
    with pytest.raises(ValueError, match=f"(?s)every simulation .* found: .* NaN in comparisons of {names}"):
        run(NormalNowhere)


def test_ranks_are_those_of_dreams_among_draws_by_hand():
    """A guide that draws 0.5 for certain, nearly: the rank is all or nothing."""
    guide = lambda x: numpyro.sample("z", dist.Normal(0.5 + 0.0 * x, 1e-6))
    pairs = {"z": jnp.array([0.0, 1.0, 2.0, -1.0])}, {"x": jnp.zeros(4)}
    result = calibrate(
        jax.random.key(0), models.BY_HAND_THETA, models.one_model, guide, 0.0, pairs=pairs, num_samples=7
    )
    assert result.ranks["z"].tolist() == [0, 7, 7, 0]
    assert result.density_ranks["log_q"].tolist() == [0, 0, 0, 0]
    assert result.p_values["z"] == uniformity.p_values(result.ranks["z"], 7)


def test_coverage_is_that_of_central_intervals():
    """Of 4 draws and level 0.6, the ranks 1, 2 and 3 of five; of level 0.8 also half of the outer ones."""
    guide = lambda x: numpyro.sample("z", dist.Normal(0.5 + 0.0 * x, 1e-6))
    pairs = {"z": jnp.array([0.0, 1.0])}, {"x": jnp.zeros(2)}
    result = calibrate(
        jax.random.key(0),
        models.BY_HAND_THETA,
        models.one_model,
        guide,
        0.0,
        pairs=pairs,
        num_samples=4,
        levels=(0.8, 0.6),
    )
    np.testing.assert_allclose(result.levels, [0.6, 0.8])
    np.testing.assert_allclose(result.coverage["z"], [0.0, 0.5], atol=1e-9)
    np.testing.assert_allclose(result.expected_coverage, [0.0, 0.0], atol=1e-9)


def test_coverage_says_what_narrow_and_wide_guides_do():
    narrow, wide = gaussian(width=0.7), gaussian(width=1 / 0.7)
    exact = lambda width: 2 * dist.Normal().cdf(width * dist.Normal().icdf(0.9)) - 1  # of 80 % intervals of z2
    for result, width in ((narrow, 0.7), (wide, 1 / 0.7)):
        share = float(exact(width))
        assert abs(result.coverage["z2"][1] - share) < 5 * np.sqrt(share * (1 - share) / 1000) + 0.01
    assert narrow.expected_coverage[1] < 0.7 < 0.9 < wide.expected_coverage[1]
    assert "too narrow" in repr(narrow)
    assert "too wide" in repr(wide)
    assert "too low" in repr(gaussian(shift=-0.5))


# Weights


def test_weighted_draws_are_calibrated_where_the_guide_is_not():
    wide = gaussian(width=1.4, num_samples=500, num_simulations=300)
    weighted = gaussian(width=1.4, num_samples=500, num_simulations=300, weighted=True)
    assert wide.p_value < 0.01 < weighted.p_value


def plate_model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def plate_guide(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(x / 2, numpyro.param("scale", jnp.full(len(x), 0.5**0.5))))


def test_each_unit_has_weights_of_its_own():
    """A weight of all twenty units together would leave one draw, and no calibration."""
    params = {"scale": jnp.full(20, 1.2)}
    options = {"num_simulations": 200, "num_samples": 200}
    model, guide = (lambda x: plate_model(x)), (lambda x: plate_guide(x))  # nothing is compiled of these yet
    result = calibrate(jax.random.key(0), params, model, guide, jnp.zeros(20), weighted=True, **options)
    assert result.p_value > 0.01
    assert calibrate(jax.random.key(0), params, model, guide, jnp.zeros(20), **options).p_value < 1e-6


def test_each_unit_has_a_p_value_of_its_own():
    params = {"scale": jnp.array([0.5**0.5, 0.4, 0.5**0.5])}
    result = calibrate(jax.random.key(0), params, plate_model, plate_guide, jnp.zeros(3))
    assert result.ranks["z"].shape == (1000, 3)
    assert result.density_ranks["log_q"].shape == (1000, 3)
    for p_values in (result.p_values["z"], result.density_p_values["log_q"]):
        assert (p_values < 1e-6).tolist() == [False, True, False]
    assert result.coverage["z"].shape == result.expected_coverage.shape == (3, 3)
    assert "z: p " in repr(result)
    assert "(smallest of 3)" in repr(result)


# Programs


def test_what_is_masked_plays_no_part():
    """The guide draws anything where there is no data."""
    mask = jnp.array([True, False])

    def model(x):
        with numpyro.plate("data", 2), numpyro.handlers.mask(mask=mask):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 2), numpyro.handlers.mask(mask=mask):
            numpyro.sample("z", dist.Normal(jnp.where(mask, x / 2, 7.0), 0.5**0.5))

    result = calibrate(jax.random.key(0), {}, model, guide, jnp.zeros(2))
    assert result.p_value > 0.01
    assert len(set(result.ranks["z"][:, 1].tolist())) == 100  # any of them, at random


def regression_model(covariate, x):
    z = numpyro.sample("z", dist.Normal(0.0, covariate))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def regression_guide(covariate, x):
    variance = 1 / (1 / covariate**2 + 1)
    numpyro.sample("z", dist.Normal(variance * x, numpyro.param("width", 1.0) * variance**0.5))


@pytest.mark.parametrize("width", [1.0, 0.7])
def test_each_simulation_has_the_covariates_of_a_datum(width):
    covariates, params = jnp.array([0.1, 1.0, 10.0]), {"width": jnp.array(width)}
    result = calibrate(
        jax.random.key(0), params, regression_model, regression_guide, covariates, jnp.zeros(3), data_axes=0
    )
    assert result.ranks["z"].shape == (1000,)
    assert (result.p_value > 0.01) == (width == 1.0)


def branching_model(x):
    """One Gaussian latent or none, and then x has another variance."""
    if numpyro.sample("some", dist.Bernoulli(0.4), infer=BRANCHES):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)
    else:
        numpyro.sample("x", dist.Normal(0.0, 0.5), obs=x)


def branching_guide(x):
    logit = jnp.log(0.4 / 0.6) + dist.Normal(0.0, 3**0.5).log_prob(x) - dist.Normal(0.0, 0.5).log_prob(x)
    width = numpyro.param("width", 1.0)
    if numpyro.sample("some", dist.Bernoulli(logits=numpyro.param("power", 1.0) * logit), infer=BRANCHES):
        covariance = width**2 * (jnp.eye(2) - jnp.ones((2, 2)) / 3)
        numpyro.sample("z", dist.MultivariateNormal(jnp.full(2, x / 3), covariance))


def branching(power=1.0, width=1.0, num_simulations=300, **options):
    params = {"power": jnp.array(power), "width": jnp.array(width)}
    options = {"num_simulations": num_simulations, "num_samples": 50, "data_axes": 0} | options
    return calibrate(jax.random.key(1), params, branching_model, branching_guide, jnp.zeros(3), **options)


@pytest.mark.slow
def test_programs_that_branch():
    result = branching()
    assert result.p_value > 0.01
    assert {name: ranks.shape for name, ranks in result.ranks.items()} == {"some": (300,), "z": (300, 2)}
    assert branching(width=0.5).p_values["z"].max() < 0.01
    assert branching(power=0.2).density_p_values["log_p"] < 0.01


@pytest.mark.slow
def test_programs_that_branch_are_calibrated_by_weights():
    assert branching(width=2.0).p_value < 0.01 < branching(width=2.0, weighted=True, num_samples=300).p_value


@pytest.mark.slow
def test_paths_give_the_ranks_of_particles_that_run_one_by_one():
    by_paths = branching(num_simulations=6, num_samples=5)
    one_by_one = branching(num_simulations=6, num_samples=5, vectorize_particles=False)
    for name, ranks in by_paths.ranks.items():
        np.testing.assert_array_equal(ranks, one_by_one.ranks[name])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"chunk_size": 2}, id="chunks"),
        pytest.param({"vectorize_particles": False}, id="one by one", marks=pytest.mark.slow),
    ],
)
def test_ranks_do_not_depend_on_how_dreams_run(options):
    whole, other = (gaussian(num_simulations=5, num_samples=3, **how) for how in ({}, options))
    for ranks, same in ((whole.ranks, other.ranks), (whole.density_ranks, other.density_ranks)):
        assert all(np.array_equal(ranks[name], same[name]) for name in ranks)


def test_a_site_that_is_not_there_is_below_all_values():
    """Of three draws with z in two of them, for a dream with z and one without."""
    scored = Scored(jnp.zeros(()), jnp.zeros(()), Units((), 1.0))

    def numbers(draws, dream):
        statistic, beside = RankStatistic((("z", (2,)),)), Dream(Draws(dream, {}), {})
        compared = [statistic(Comparison(beside, scored, draw, scored, {}, alone=True)) for draw in draws]
        summary = RankSummary(weighted=False)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *compared))
        return [tuple(map(float, pair)) for pair in summary.sites["z"]]

    draws = [{"z": jnp.array([1.0, -1.0])}, {}, {"z": jnp.array([3.0, 3.0])}]
    assert numbers(draws, {"z": jnp.array([2.0, 3.0])}) == [(2.0, 0.0), (2.0, 1.0)]
    assert numbers(draws, {}) == [(0.0, 1.0), (0.0, 1.0)]


def scan_model(x):
    def step(carry, x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return carry, None

    scan(step, None, x)


def scan_guide(x):
    scale = numpyro.param("scale", 1.0)

    def step(carry, x):
        numpyro.sample("z", dist.Normal(x / 2, scale))
        return carry, None

    scan(step, None, x)


@pytest.mark.parametrize("scale", [0.5**0.5, 1.0])
def test_sites_in_a_scan(scale, allow_key_reuse):
    result = calibrate(jax.random.key(0), {"scale": jnp.array(scale)}, scan_model, scan_guide, jnp.zeros(4))
    assert result.p_values["z"].shape == (4,)
    assert (result.p_value > 0.01) == (scale < 1.0)


# Ways in which dreams reach guides, and pairs that take their place


def open_model(x=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def open_guide(observations=None):
    numpyro.sample("z", dist.Normal(observations["x"] / 2, 0.5**0.5))


def test_a_model_that_runs_without_data():
    result = calibrate(jax.random.key(0), {}, open_model, open_guide, observed_sites=("x",))
    assert result.ranks.keys() == {"z"}
    assert result.p_value > 0.01


def test_dreams_reach_the_guide_by_a_function_of_the_caller():
    guide = lambda twice: numpyro.sample("z", dist.Normal(twice / 4, 0.5**0.5))
    show = lambda data, x: ((2 * data["x"],), {})
    result = calibrate(jax.random.key(0), {}, open_model, guide, 0.0, simulated_data_to_args=show)
    assert result.p_value > 0.01


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_pairs_of_another_simulator(scale):
    """Those of the model pass; data with less noise do not."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=1000)
    pairs = {"z": z.astype(np.float32)}, {"x": (z + scale * rng.normal(size=1000)).astype(np.float32)}
    result = calibrate(jax.random.key(0), {}, open_model, open_guide, pairs=pairs, observed_sites=("x",))
    assert result.num_simulations == 1000
    assert (result.p_value > 0.01) == (scale == 1.0)


def test_pairs_are_taken_as_predictive_returns_them():
    """Latents and data in one dict, and what is deterministic beside them."""

    def model(x=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("twice", 2 * z)
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    pairs = numpyro.infer.Predictive(model, num_samples=20)(jax.random.key(1))
    assert pairs.keys() == {"z", "twice", "x"}
    options = {"observed_sites": ("x",), "num_samples": 5}
    together = calibrate(jax.random.key(0), {}, model, open_guide, pairs=pairs, **options)
    apart = calibrate(jax.random.key(0), {}, model, open_guide, pairs=({"z": pairs["z"]}, {"x": pairs["x"]}), **options)
    np.testing.assert_array_equal(together.ranks["z"], apart.ranks["z"])
    assert together.num_simulations == 20


def test_results_are_trees_and_have_bands():
    result = gaussian(num_simulations=50, num_samples=9)
    same = jax.tree.unflatten(jax.tree.structure(result), jax.tree.leaves(result))
    assert repr(same) == repr(result)
    band = result.band(0.9)
    assert band.points.shape == band.low.shape == band.high.shape == (9,)
    np.testing.assert_allclose(result.ecdf("z1"), [(result.ranks["z1"] < point).mean() for point in range(1, 10)])
    assert result.ecdf("log_q").shape == (9,)


def test_few_simulations_say_that_they_find_nothing():
    """Of a guide of half the posterior's width 20 find nothing of note, and 100 do."""
    few, more = (gaussian(num_simulations=num, num_samples=99) for num in (20, 100))
    assert "no sign of miscalibration, but 20 simulations would not show" in repr(few)
    assert repr(more).splitlines()[0].endswith("no sign of miscalibration")
    assert "NOT calibrated" in repr(gaussian(width=0.5, num_simulations=100))


# Messages


ERRORS = [
    ({"num_simulations": 0}, ValueError, "option 'num_simulations' is too small"),
    ({"num_simulations": 10**5, "num_samples": 10**5}, ValueError, "too many draws"),
    ({"num_samples": 2.0}, TypeError, "option 'num_samples' has the wrong type"),
    ({"weighted": 1}, TypeError, "option 'weighted' has the wrong type"),
    ({"levels": 0.9}, TypeError, "option 'levels' has the wrong type"),
    ({"levels": (0.9, 1.0)}, ValueError, "option 'levels' is out of range"),
    ({"num_particles": 10}, TypeError, "simulation_based_calibration has no option 'num_particles'"),
    ({"pairs": 3}, TypeError, "option 'pairs' has the wrong type"),
    (
        {"pairs": ({"z1": np.zeros((3, 2)), "z2": np.zeros(3)}, np.zeros(7))},
        TypeError,
        "found:    a tuple of 2, of (3, 2) at 'z1', (3,) at 'z2'; (7,)\n",
    ),
    ({"pairs": {"z1": np.zeros(3), "x": np.zeros(2)}}, ValueError, "do not agree on the number of pairs"),
    ({"pairs": {"z1": np.zeros(3), "x": np.zeros(3)}}, ValueError, "does not have the latent sites of the model"),
    (
        {"pairs": {"z1": np.zeros(3), "z2": np.zeros(3), "y": np.zeros(3)}},
        ValueError,
        "option 'pairs' has ['y'], which are no sites of the model",
    ),
    ({"pairs": ({"z1": np.zeros(3)}, {"x": np.zeros(2)})}, ValueError, "do not agree on the number of pairs"),
    ({"pairs": ({"z1": np.zeros(3)}, {"x": np.zeros(3)})}, ValueError, "does not have the latent sites of the model"),
    (
        {"pairs": ({"z1": np.zeros(3), "z2": np.zeros((3, 2))}, {"x": np.zeros(3)})},
        ValueError,
        "shapes differ at latent site 'z2' of option 'pairs'",
    ),
    (
        {"pairs": ({"z1": np.zeros(3), "z2": np.zeros(3)}, {"x": np.zeros(3)}), "num_simulations": 4},
        ValueError,
        "option 'num_simulations' is not the number of 'pairs'",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), ERRORS, ids=lambda value: None)
def test_what_is_wrong_is_said(options, kind, message):
    with pytest.raises(kind) as error:
        gaussian(**options)
    check(error, kind, message)


def test_messages_of_dreams_do_not_speak_of_training():
    """The remedies of sleep are none here, and it is not sleep that was called."""

    def with_factor(x):
        numpyro.factor("penalty", -numpyro.sample("z", dist.Normal(0.0, 1.0)))
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def in_part(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.zeros(2), obs_mask=jnp.array([True, False]))

    def masked(x):
        numpyro.sample("z", dist.Normal(0.0, 1.0).mask(False))
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def auxiliary(x):
        numpyro.sample("y", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Normal(x, 1.0))

    guide = lambda x: numpyro.sample("z", dist.Normal(x, 1.0))
    unread = lambda y: numpyro.sample("z", dist.Normal(y, 1.0))
    wrong = {
        "cannot dream from the model: site 'penalty'": (with_factor, guide),
        "cannot dream site 'x', which is observed in part": (in_part, guide),
        "cannot dream latent site 'z', which is masked": (masked, guide),
        "cannot hand its dreams to the guide": (lambda x: open_model(2.0 * x), unread),
        "cannot test auxiliary site 'y'": (open_model, auxiliary),
        "has no data to dream": (lambda x: numpyro.sample("z", dist.Normal(0.0, 1.0)), guide),
    }
    for message, programs in wrong.items():
        for function in (calibrate, rws_jax.simulation_gap):
            with pytest.raises(ValueError, match=f"^{function.__name__} {message}") as error:
                function(jax.random.key(0), {}, *programs, 0.0)
            check(error, ValueError, "hint: ")
            assert not any(word in str(error.value) for word in ("sleep", "insomnia", "train"))


def test_calls_that_cannot_be():
    pairs = {"some": np.zeros(3), "z": np.zeros((3, 2))}, {"x": np.zeros(3)}
    other = lambda data: numpyro.sample("z", dist.Normal(data, 1.0))
    calls = {
        "cannot test the automatic guide 'AutoNormal'": lambda _: of_one(AutoNormal(models.one_model)),
        "cannot test the automatic guide 'AutoMultivariateNormal'": lambda _: of_one(
            AutoMultivariateNormal(models.one_model)
        ),
        "simulation_based_calibration is traced": jax.jit(lambda shift: gaussian(shift=shift).ranks["z1"]),
        "programs have branching sites, and option 'pairs'": lambda _: branching(pairs=pairs, num_simulations=None),
        "simulation_based_calibration cannot hand its dreams": lambda _: calibrate(
            jax.random.key(0), {}, open_model, other, observed_sites=("x",)
        ),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message) as error:
            call(0.0)
        check(error, ValueError, message)
