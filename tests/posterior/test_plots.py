"""Pictures show the numbers that they are given, on the Axes that they are given, and leave nothing behind."""

import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import rws_jax
from rws_jax import RWSInfo, plots
from rws_jax.posterior.dreams import uniformity
from rws_jax.posterior.samples import psis
from tests.posterior.test_evaluate import refused

RNG = np.random.default_rng(0)
RANKS = RNG.integers(0, 20, (200, 3))
LOG_W = np.append(RNG.normal(size=500), [-np.inf])
INFOS = RWSInfo.of_no_steps()._replace(
    wake_theta_loss=jnp.linspace(3.0, 1.0, 50),
    sleep_phi_loss=jnp.linspace(4.0, 2.0, 50),
    ess_mean=jnp.linspace(1.0, 9.0, 50),
    ess_min=jnp.linspace(1.0, 5.0, 50),
    num_dead_units=jnp.arange(50) % 3,
)
PICTURES = {
    "learning_curves": lambda ax: plots.learning_curves(INFOS, ax),
    "calibration": lambda ax: plots.calibration(RANKS, 19, ax=ax),
    "coverage": lambda ax: plots.coverage([0.5, 0.9], np.array([0.4, 0.8]), num_simulations=200, ax=ax),
    "bound": lambda ax: plots.bound_by_num_particles([1, 10], [-2.0, -1.5], [0.1, 0.05], ax=ax),
    "pareto_k": lambda ax: plots.pareto_k(np.array([0.1, 0.9, np.inf, np.nan]), ax=ax),
    "weights_tail": lambda ax: plots.weights_tail(LOG_W, ax=ax),
}


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def lines_of(ax):
    return {line.get_label(): line.get_xydata() for line in ax.get_lines()}


@pytest.mark.parametrize("name", PICTURES)
def test_it_draws_on_the_axes_that_are_given_and_leaves_no_state(name, ax, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("plots show nothing"))
    settings, others = dict(mpl.rcParams), plt.get_fignums()
    assert PICTURES[name](ax) is ax
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == others
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    ax.figure.canvas.draw()
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert all(texts)
    box, axes_box = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert box.y0 >= axes_box.y1  # above the Axes, so that it hides nothing


@pytest.mark.parametrize("name", PICTURES)
def test_without_axes_it_makes_a_figure_of_its_own(name):
    made = np.ravel(PICTURES[name](None))
    assert len(made) == (3 if name == "learning_curves" else 1)
    assert len(plt.get_fignums()) == 1
    plt.close("all")


def test_learning_curves_are_those_of_the_infos():
    figure, panels = plt.subplots(3)
    assert plots.learning_curves(INFOS, panels) is panels
    losses, ess, dead = map(lines_of, panels)
    assert losses.keys() == {"wake-theta", "sleep-phi"}
    np.testing.assert_allclose(losses["wake-theta"][:, 1], INFOS.wake_theta_loss)
    np.testing.assert_allclose(losses["sleep-phi"][:, 0], np.arange(50))
    np.testing.assert_allclose(ess["worst unit"][:, 1], INFOS.ess_min)
    np.testing.assert_array_equal(next(iter(dead.values()))[:, 1], INFOS.num_dead_units)
    assert [panel.get_ylabel() for panel in panels] == ["loss, nats", "ESS, particles", "dead units"]
    plt.close(figure)


def test_long_curves_are_averaged_as_well_and_seeds_share_a_colour(ax):
    values = RNG.normal(size=(200, 2))
    plots.learning_curves(RWSInfo.of_no_steps()._replace(sleep_phi_loss=jnp.asarray(values)), ax)
    raw, smooth = ax.get_lines()[:2], ax.get_lines()[2:]
    np.testing.assert_allclose(raw[1].get_ydata(), values[:, 1], rtol=1e-6)
    np.testing.assert_allclose(smooth[0].get_ydata()[0], values[:4, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(smooth[0].get_xdata()[0], 1.5)
    assert len({line.get_color() for line in ax.get_lines()}) == 1


def test_calibration_is_the_ecdf_minus_uniform_with_its_band(ax):
    plots.calibration({"z": RANKS, "y": np.minimum(RANKS[:, 0], 15)}, 19, level=0.9, ax=ax)
    x = np.concatenate([[0.0], np.arange(1, 20) / 20, [1.0]])
    curves = [line for line in ax.get_lines() if len(line.get_xdata()) == 21]
    assert len(curves) == 4
    for column, curve in zip(RANKS.T, curves, strict=False):
        np.testing.assert_allclose(curve.get_xdata(), x)
        expected = [(column < 20 * point - 0.5).mean() - point for point in x[1:-1]]
        np.testing.assert_allclose(curve.get_ydata()[1:-1], expected, atol=1e-12)
    points, low, high = uniformity.band(200, 19, 0.9)
    band = ax.collections[0].get_paths()[0].vertices
    for drawn in np.stack([np.concatenate([points] * 2), np.concatenate([low - points, high - points])], axis=1):
        assert np.min(np.abs(band - drawn).sum(axis=1)) < 1e-9
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    num_outside = np.sum(uniformity.p_values(RANKS, 19) <= 0.1)  # by the test that the band is that of
    assert texts == ["90 % band", f"z: {num_outside} of 3 outside", "y"]


def test_coverage_is_drawn_by_site_and_only_where_asked_for(ax):
    covered = {"z": np.array([[0.4, 0.5], [0.8, 0.9]]), "y": np.array([0.3, 0.7])}
    plots.coverage([0.5, 0.9], covered, names=["z"], ax=ax)
    curves = ax.get_lines()[1:]
    np.testing.assert_array_equal([curve.get_ydata() for curve in curves], covered["z"].T)
    np.testing.assert_array_equal(curves[0].get_xdata(), [0.5, 0.9])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["calibrated", "z"]


def test_bounds_of_two_guides_have_two_colours(ax):
    plots.bound_by_num_particles([1, 10], [-2.0, -1.5], [0.1, np.nan], name="one", ax=ax)
    plots.bound_by_num_particles([1, 10], [-3.0, -1.6], name="other", ax=ax)
    one, other = ax.get_lines()
    np.testing.assert_array_equal(one.get_xydata(), [[1, -2.0], [10, -1.5]])
    np.testing.assert_array_equal(other.get_ydata(), [-3.0, -1.6])
    assert (one.get_label(), other.get_label()) == ("one ± 2 s.e.", "other")
    assert one.get_color() != other.get_color()
    assert ax.get_xscale() == "log"
    segments = ax.collections[1].get_segments()  # two standard errors to each side
    np.testing.assert_allclose(segments[0][:, 1], [-2.2, -1.8])


def test_k_hat_above_its_limit_stands_out_and_none_is_left_out_unsaid(ax):
    k = np.array([[0.1, 0.9, np.inf], [np.nan, 0.7, -np.inf]])
    plots.pareto_k(k, ax=ax)
    drawn = lines_of(ax)
    np.testing.assert_array_equal(drawn["2 at most 0.7"], [[0, 0.1], [4, 0.7]])
    np.testing.assert_array_equal(drawn["2 above 0.7"], [[1, 0.9]])
    assert drawn["1 of these at inf"][0, 0] == 2
    assert drawn["1 without a tail (-inf)"][0, 0] == 5
    assert "1 with NaN left out" in ax.get_xlabel()
    assert any(np.array_equal(line[:, 1], [0.7, 0.7]) for line in drawn.values())


def test_shares_of_the_weights_and_the_fitted_tail(ax):
    plots.weights_tail(LOG_W, ax=ax)
    w = np.sort(np.exp(LOG_W) / np.exp(LOG_W).sum())[::-1]
    drawn = lines_of(ax)
    label = f"weights: largest {w[0]:.1%}, ESS {1 / np.sum(w**2):.1f} of 501"
    np.testing.assert_allclose(drawn[label][:, 1], w[:500], rtol=1e-10)
    smoothed, k = psis.pareto_smoothed(LOG_W)
    tail = drawn[f"Pareto tail, k-hat {k:.2f}"][:, 1]
    np.testing.assert_allclose(tail, np.sort(np.exp(smoothed) / np.exp(LOG_W).sum())[::-1][: len(tail)], rtol=1e-10)
    assert 60 < len(tail) <= 3 * np.sqrt(501) + 1
    assert "1 of weight zero left out" in ax.get_xlabel()


def test_weights_of_several_units_or_of_a_dead_one_are_refused(ax):
    refused(ValueError, lambda: plots.weights_tail(np.zeros((10, 3)), ax=ax), "one unit", "(10, 3)", "[:, 0]")
    refused(ValueError, lambda: plots.weights_tail(np.full(10, -np.inf), ax=ax), "a largest log-weight of -inf")
    refused(ValueError, lambda: plots.weights_tail(np.full(10, np.nan), ax=ax), "a largest log-weight of nan")


def test_the_axis_of_weights_ends_where_they_are_of_no_account(ax):
    plots.weights_tail(np.linspace(0.0, -250.0, 100), ax=ax)
    share = 1 - np.exp(-250 / 99)
    low, high = ax.get_ylim()
    np.testing.assert_allclose([low, high], [1e-6 * share, 2 * share], rtol=1e-3)


def test_axes_say_whole_numbers_and_no_offset(ax):
    plots.bound_by_num_particles([2, 8, 2000], [-1.70233, -1.70221, -1.7022], ax=ax)
    ax.figure.canvas.draw()
    assert not ax.yaxis.get_offset_text().get_text()
    labels = [label.get_text() for which in ("major", "minor") for label in ax.get_xticklabels(which=which)]
    assert labels == ["2", "8", "2,000"]
    figure, other = plt.subplots()
    plots.pareto_k(np.array([0.3]), ax=other)
    assert [tick for tick in other.get_xticks() if -0.5 <= tick <= 0.5] == [0.0]
    plt.close(figure)


def test_ess_of_one_unit_is_one_curve():
    figure, panels = plt.subplots(3)
    plots.learning_curves(INFOS._replace(ess_min=INFOS.ess_mean), panels)
    assert len(panels[1].get_lines()) == 1
    plt.close(figure)


VALUES: Any = [np.zeros(1)] * 4 + [np.zeros((9, 1))] * 2
RESULT: Any = rws_jax.SimulationGap(*VALUES, 2, exchangeable=False)
NO_ARRAYS = {
    "calibration.ranks": lambda: plots.calibration(RESULT),
    "calibration.num_samples": lambda: plots.calibration(RANKS),
    "calibration.levels": lambda: plots.coverage(RESULT),
    "*evaluation.by_num_particles": lambda: plots.bound_by_num_particles(RESULT),
    "plots.pareto_k(weighted.pareto_k())": lambda: plots.pareto_k(RESULT),
    "weighted.log_weights[:, 0]": lambda: plots.weights_tail(RESULT),
    "state, infos = rws_jax.fit": lambda: plots.learning_curves(RESULT),
}


@pytest.mark.parametrize("which", NO_ARRAYS)
def test_results_in_place_of_arrays_are_refused(which):
    refused(TypeError, NO_ARRAYS[which], "to draw", which)
    assert not plt.get_fignums()


@pytest.mark.slow
def test_matplotlib_is_asked_for_by_pictures_alone():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import rws_jax\n"
        "try:\n    from rws_jax import plots\n"
        "except ImportError as error:\n    assert 'pip install \"rws_jax[plots]\"' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, rws_jax; assert 'matplotlib' not in sys.modules and 'arviz' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
