"""ArviZ takes what `to_arviz` gives, by either of its interfaces, and computes what is exact from it."""

import contextlib
import importlib
import sys
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import rws_jax
from rws_jax.posterior.predictive.inference_data import Group, note_of_own_latents
from tests.posterior import exact
from tests.posterior.exact import key

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")


@pytest.fixture(scope="module")
def az():
    """The functions of the installed ArviZ, which from 1.0 on come from several packages."""
    functions = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("arviz_plots", "arviz_stats", "arviz_base", "arviz"):
            with contextlib.suppress(ImportError):
                functions |= vars(importlib.import_module(module))
    return SimpleNamespace(**functions)


def quiet(function, *args, **options):
    """ArviZ's own warnings say nothing of what it is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


def location(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.deterministic("square", z**2)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def location_guide(x):
    numpyro.sample("z", dist.Normal(jnp.sum(x) / (len(x) + 1), 0.5))


X = np.array([0.3, -0.5, 1.2, 0.8, 2.0, 0.1, 0.4], np.float32)


@pytest.mark.floors
def test_summary_and_leave_one_out_are_the_exact_ones(az):
    weighted = rws_jax.importance_sample(key(), {}, location, location_guide, X, num_particles=4000)
    data = rws_jax.to_arviz(weighted, key(1), {}, location, X, num_samples=4000)
    mean, sd, num = X.sum() / 8, np.sqrt(1 / 8), 4000
    table = quiet(az.summary, data, round_to="none")
    assert set(table.index) == {"z", "square"}
    assert abs(float(table.loc["z", "mean"]) - mean) < 5 * sd / np.sqrt(num / 2)
    assert abs(float(table.loc["z", "sd"]) - sd) < 0.02
    assert abs(float(table.loc["square", "mean"]) - mean**2 - sd**2) < 0.05
    assert "leave_one_out" not in data["log_likelihood"].attrs
    found = quiet(az.loo, data, pointwise=True)
    pointwise = np.asarray(found.loo_i if hasattr(found, "loo_i") else found.elpd_i)
    others = (X.sum() - X) / 7
    np.testing.assert_allclose(pointwise, exact.log_normal(X, others, 1 + 1 / 7), atol=0.03)


def test_a_datum_with_latents_of_its_own_is_not_left_out_by_its_likelihood(az):
    """Data that are independent: left out or not, the density of each is its evidence."""

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(x / 1.25, np.sqrt(0.2)))

    weighted = rws_jax.importance_sample(key(), {}, model, guide, X, num_particles=500)
    data = rws_jax.to_arviz(weighted, key(1), {}, model, X, num_samples=500)
    elpd = exact.log_normal(X, 0.0, 1.25).sum()
    np.testing.assert_allclose(data["sample_stats"]["log_evidence"].sum(), elpd, rtol=1e-5)
    with pytest.warns(UserWarning, match="Pareto distribution"):
        found = az.loo(data)
    assert (found.elpd_loo if hasattr(found, "elpd_loo") else found.elpd) > elpd + 1
    note = data["log_likelihood"].attrs["leave_one_out"]
    assert "['x'] has latents of its own" in note
    assert "it is the sum of sample_stats.log_evidence, exactly" in note


@pytest.mark.parametrize(
    ("of_x", "of_latents", "expected"),
    [
        pytest.param(("data",), {"z": ("data",)}, "it is the sum of", id="a latent of each datum"),
        pytest.param(("data",), {"mu": (), "z": ("data", None)}, "Compare models by", id="and one of all"),
        pytest.param(("data",), {"mu": ()}, None, id="one of all"),
        pytest.param(("data", "groups"), {"z": ("groups",)}, None, id="one of each group"),
        pytest.param((None,), {"z": (None,)}, None, id="no plates"),
    ],
)
def test_data_with_latents_of_their_own_are_found_by_plates(of_x, of_latents, expected):
    units = () if "mu" in of_latents else ("data",)
    note = note_of_own_latents(Group({"x": 0}, {"x": of_x}), Group(of_latents, of_latents), units)
    assert expected in note["leave_one_out"] if expected else not note


@pytest.mark.floors
def test_groups_axes_and_coordinates():
    """Plates in another order than their axes, an event, several units, and a plate that has the name of a site."""

    def model(x):
        with numpyro.plate("x", x.shape[1], dim=-1):
            v = numpyro.sample("v", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            with numpyro.plate("draw", x.shape[0], dim=-2):
                u = numpyro.sample("u", dist.Normal(0.0, 1.0))
                numpyro.deterministic("loc", u[..., None] + v)
                numpyro.sample("y", dist.Normal(u[..., None] + v, 1.0).to_event(1), obs=x)

    def guide(x):
        with numpyro.plate("x", x.shape[1], dim=-1):
            numpyro.sample("v", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            with numpyro.plate("draw", x.shape[0], dim=-2):
                numpyro.sample("u", dist.Normal(0.0, 1.0))

    x = jnp.arange(12.0).reshape(2, 3, 2) / 12
    weighted = rws_jax.importance_sample(key(), {}, model, guide, x, num_particles=500)
    data = rws_jax.to_arviz(weighted, key(1), {}, model, x, num_samples=10)
    shapes = lambda group: {name: dict(data[group][name].sizes) for name in data[group].data_vars}
    draws, plates = {"chain": 1, "draw": 10}, {"draw_plate": 2, "x": 3}
    assert shapes("posterior") == {
        "v": draws | {"x": 3, "v_dim_1": 2},
        "u": draws | plates,
        "loc": draws | plates | {"loc_dim_2": 2},
    }
    assert [tuple(data["posterior"][name].dims) for name in "uv"] == [
        ("chain", "draw", "draw_plate", "x"),
        ("chain", "draw", "x", "v_dim_1"),
    ]
    assert shapes("posterior_predictive") == {"y": draws | plates | {"y_dim_2": 2}}
    assert shapes("log_likelihood") == {"y": draws | plates}
    assert shapes("observed_data") == {"y": plates | {"y_dim_2": 2}}
    of_units = {name: {"x": 3} for name in ("log_evidence", "effective_sample_size", "pareto_k")}
    assert shapes("sample_stats") == {"log_weight": draws | {"x": 3}} | of_units
    np.testing.assert_array_equal(data["observed_data"]["y"], x)
    np.testing.assert_array_equal(data["posterior"]["x"], np.arange(3))

    # What the groups have of one draw goes together.
    u, v = np.asarray(data["posterior"]["u"])[0], np.asarray(data["posterior"]["v"])[0]
    loc = u[..., None] + v[:, None]
    np.testing.assert_allclose(np.asarray(data["posterior"]["loc"])[0], loc, rtol=1e-5)
    log_prob = exact.log_normal(np.asarray(x), loc, 1.0).sum(axis=-1)
    np.testing.assert_allclose(np.asarray(data["log_likelihood"]["y"])[0], log_prob, rtol=1e-4)
    log_weight = np.asarray(data["sample_stats"]["log_weight"])[0]  # the guide is the prior
    np.testing.assert_allclose(log_weight, log_prob.sum(axis=1), rtol=1e-4)
    k = data["sample_stats"]["pareto_k"]
    np.testing.assert_array_equal(k, weighted.pareto_k())
    np.testing.assert_array_equal(data["sample_stats"]["effective_sample_size"], weighted.effective_sample_size())
    np.testing.assert_array_equal(data["sample_stats"]["log_evidence"], weighted.log_evidence().value)
    resampled = weighted.resample(jax.random.split(key(1))[0], 10)
    np.testing.assert_array_equal(u, resampled["u"])


@pytest.mark.slow
@pytest.mark.parametrize("name", exact.CASES)
def test_any_program(name, az):
    """Discrete latents, scan, data axes and branches: summarised, compared and plotted."""
    case = exact.CASES[name]()
    weighted = rws_jax.importance_sample(
        key(), case.params, case.model, case.guide, *case.args, num_particles=1000, **case.options
    )
    data = rws_jax.to_arviz(weighted, key(1), case.params, case.model, *case.args, num_samples=50, **case.options)
    for group in "posterior", "sample_stats", "log_likelihood", "observed_data", "posterior_predictive":
        assert data[group].attrs["inference_library"] == "rws_jax"
    assert set(data["posterior"].data_vars) == set(case.means)
    assert data["log_likelihood"]["x"].shape == data["posterior_predictive"]["x"].shape == (1, 50, *case.args[0].shape)
    np.testing.assert_array_equal(data["observed_data"]["x"], case.args[0])
    assert data["sample_stats"]["pareto_k"].shape == case.log_evidence.shape
    assert np.isfinite(data["log_likelihood"]["x"]).all()
    quiet(az.summary, data)
    if name != "discrete":  # ArviZ 1.0 refuses tails that are tied
        quiet(az.loo, data)
    plot = getattr(az, "plot_ppc", None) or getattr(az, "plot_ppc_dist", None)
    if plot is not None:
        quiet(plot, data)


def test_indices_of_a_minibatch_are_coordinates():
    def model(x):
        with numpyro.plate("data", 5, subsample_size=2) as rows:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with numpyro.plate("data", 5, subsample_size=2):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    x, rows = jnp.arange(5.0) / 5, {"data": jnp.array([1, 3])}
    model, guide = (numpyro.handlers.substitute(program, rows) for program in (model, guide))
    weighted = rws_jax.importance_sample(key(), {}, model, guide, x, num_particles=100)
    data = rws_jax.to_arviz(weighted, key(1), {}, model, x, num_samples=10)
    np.testing.assert_array_equal(data["posterior"]["data"], [1, 3])
    np.testing.assert_array_equal(data["observed_data"]["x"].sel(data=3), x[3])


@pytest.mark.usefixtures("allow_key_reuse")  # by NumPyro's subsampling
def test_a_minibatch_that_is_passed_has_no_indices():
    def model(x):
        with numpyro.plate("data", 50, subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 50, subsample_size=len(x)):
            numpyro.sample("z", dist.Normal(x / 2, np.sqrt(0.5)))

    weighted = rws_jax.importance_sample(key(), {}, model, guide, X, num_particles=100)
    data = rws_jax.to_arviz(weighted, key(1), {}, model, X, num_samples=10)
    np.testing.assert_array_equal(data["posterior"]["data"], np.arange(len(X)))  # positions
    np.testing.assert_array_equal(data["observed_data"]["x"], X)
    log_prob = exact.log_normal(X, np.asarray(data["posterior"]["z"]), 1.0)
    np.testing.assert_allclose(data["log_likelihood"]["x"], log_prob, rtol=1e-4)


def test_weights_that_are_not_to_be_trusted_are_warned_of():
    def narrow(x):
        numpyro.sample("z", dist.Normal(-1.0, 0.1))

    weighted = rws_jax.importance_sample(key(), {}, location, narrow, X, num_particles=500)
    with pytest.warns(UserWarning, match="Pareto k-hat is above 0.7") as warned:
        data = rws_jax.to_arviz(weighted, key(1), {}, location, X, num_samples=10)
    assert warned[0].filename == __file__
    assert data["sample_stats"]["pareto_k"] > 0.7


def test_what_is_masked_and_factors_add_nothing_to_the_log_likelihood():
    """What is missing has a latent in its place, which is none of a datum's own."""

    def model(x, seen):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("f", -(z**2))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)

    def guide(x, seen):
        numpyro.sample("z", dist.Normal(0.5, 0.5))
        with numpyro.plate("data", len(x)), numpyro.handlers.mask(mask=~seen):
            numpyro.sample("x_unobserved", dist.Normal(0.0, 1.0))

    args = X, X < 1.0
    weighted = rws_jax.importance_sample(key(), {}, model, guide, *args, num_particles=100)
    data = rws_jax.to_arviz(weighted, key(1), {}, model, *args, num_samples=10)
    assert set(data["log_likelihood"].data_vars) == {"x_observed"}
    z = np.asarray(data["posterior"]["z"])[..., None]
    log_prob = np.where(X < 1.0, exact.log_normal(X, z, 1.0), 0.0)
    np.testing.assert_allclose(data["log_likelihood"]["x_observed"], log_prob, rtol=1e-4)
    assert "leave_one_out" not in data["log_likelihood"].attrs


def test_it_is_called_from_python_and_without_a_guide():
    weighted = rws_jax.importance_sample(key(), {}, location, location_guide, X, num_particles=50)
    with pytest.raises(TypeError, match="the model does not take these arguments") as error:
        rws_jax.to_arviz(weighted, key(1), {}, location, location_guide, X)
    assert "hint:     as to_arviz(weighted, rng_key, params, model, *args); no guide is passed" in str(error.value)
    for converted in (
        lambda x: rws_jax.to_arviz(weighted, key(1), {}, location, x),
        lambda x: rws_jax.to_arviz(weighted, key(1), {}, location, X),
    ):
        with pytest.raises(TypeError, match="to_arviz is called inside of jit"):
            jax.jit(converted)(X)


def test_without_arviz_the_error_says_what_to_install(monkeypatch):
    weighted = rws_jax.importance_sample(key(), {}, location, location_guide, X, num_particles=50)
    for name in ("arviz", "arviz_base"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "rws_jax\[posterior\]"'):
        rws_jax.to_arviz(weighted, key(1), {}, location, X, num_samples=10)
