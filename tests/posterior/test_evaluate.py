"""Held-out evidence: it is that of enumeration and of closed forms, and its standard errors are honest."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from scipy import stats

import rws_jax
from rws_jax.posterior.held_out import evaluate as evaluate_module
from rws_jax.posterior.held_out import evidence, trust
from tests import models
from tests.checks.test_errors import check
from tests.execution.test_branching import BRANCHES

KEY = jax.random.key(0)


def evaluate(*args, **kwargs):
    return rws_jax.evaluate(*args, progress_bar=False, **kwargs)


def refused(kind, call, *words):
    with pytest.raises(kind) as error:
        call()
    check(error, kind, *words)


def plate_model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.3), 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def plate_guide(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.6) * x, 0.8))


PARAMS = {"m": 0.3, "slope": 0.6}
X = np.random.default_rng(0).normal(0.3, math.sqrt(2.0), 500).astype(np.float32)
EXACT = stats.norm.logpdf(X, 0.3, math.sqrt(2.0))


def in_slices(x, size):
    return ((x[start : start + size],) for start in range(0, len(x), size))


def test_evidence_is_the_exact_one_whatever_the_chunks_and_its_errors_are_honest():
    """Each of 500 units has particles of its own; of 600 comparisons one in 3,000 would fall outside of 5 s.e."""
    result = evaluate(KEY, PARAMS, plate_model, plate_guide, [(X,)], num_particles=300)
    z = (result.log_evidence - EXACT) / result.standard_error
    assert np.all(np.abs(z) < 5)
    assert 0.92 < np.mean(np.abs(z) < 2) < 0.98
    assert abs(result.mean - EXACT.mean()) < 5 * result.standard_error_over_particles
    assert result.total == pytest.approx(result.log_evidence.sum(dtype=float), abs=1e-9)
    assert result.standard_error_over_data == pytest.approx(stats.sem(result.log_evidence), rel=1e-5)
    assert result.standard_error_over_particles == pytest.approx(
        np.linalg.norm(result.standard_error.astype(float)) / 500
    )
    assert (result.num_dead_units, result.num_nonfinite_units, result.of_batches) == (0, 0, False)
    chunked = evaluate(KEY, PARAMS, plate_model, plate_guide, [(X,)], num_particles=300, chunk_size=70)
    np.testing.assert_allclose(chunked.bounds, result.bounds, rtol=1e-5)
    np.testing.assert_allclose(chunked.effective_sample_size, result.effective_sample_size, rtol=1e-4)


@pytest.mark.parametrize("num", [200, 190, 1000])
def test_standard_errors_of_each_bound_are_honest_whatever_the_number_of_groups(num):
    """One datum with 2,000 sets of particles, z ~ N(0, 1), x ~ N(z, 1) and guide N(x / 2, 0.8).

    About 95 % are within 2 s.e. of the expected bound if errors are honest, 93 % for those that the spread of 20 groups
    tells; with the spread of two groups 70 % are.
    """
    x, sizes, normal = 1.0, evidence.sizes_up_to(num), jax.scipy.stats.norm
    z = x / 2 + 0.8 * jax.random.normal(jax.random.key(num), (num, 2000))
    log_w = normal.logpdf(z) + normal.logpdf(x, z) - normal.logpdf(z, x / 2, 0.8)
    bounds, errors, _ = evidence.summarise(log_w, sizes)
    within = jnp.mean(jnp.abs(bounds - bounds.mean(axis=1, keepdims=True)) < 2 * errors, axis=1)
    assert np.all((within > 0.92) & (within < 0.98)), dict(zip(sizes, within.tolist(), strict=True))


@pytest.mark.slow
def test_standard_errors_of_the_mean_are_honest():
    """500 means of 20 units each: 95.4 % within 2 s.e. if they are; 92 and 98 % are 3.6 standard deviations away."""
    x = np.tile(X[:20], 500)
    result = evaluate(KEY, PARAMS, plate_model, plate_guide, in_slices(x, 2000), num_particles=500)
    means, exact = result.log_evidence.reshape(500, 20).mean(axis=1), EXACT[:20].mean()
    errors = np.linalg.norm(result.standard_error.reshape(500, 20), axis=1) / 20
    assert 0.92 < np.mean(np.abs(means - exact) < 2 * errors) < 0.98
    data = np.random.default_rng(1).normal(0.3, math.sqrt(2.0), 50_000).astype(np.float32)  # 500 sets of 100 data
    result = evaluate(KEY, PARAMS, plate_model, plate_guide, in_slices(data, 10_000), num_particles=100)
    sets, expectation = result.log_evidence.reshape(500, 100), -0.5 * math.log(4.0 * math.pi) - 0.5
    within = np.abs(sets.mean(axis=1) - expectation) < 2 * stats.sem(sets, axis=1)
    assert 0.92 < within.mean() < 0.98
    assert abs(result.mean - expectation) < 5 * result.standard_error_over_data


def expected_bound(log_p, log_q, num):
    """E[bound] with `num` particles, by enumeration of how many of them are in each state."""
    log_w, total = np.asarray(log_p - log_q, float), 0.0
    for counts in itertools.product(range(num + 1), repeat=len(log_w)):
        if sum(counts) == num:
            log_multinomial = math.lgamma(num + 1) - sum(math.lgamma(count + 1) for count in counts)
            probability = math.exp(log_multinomial + float(np.dot(counts, np.asarray(log_q, float))))
            total += probability * math.log(np.dot(counts, np.exp(log_w)) / num)
    return total


def test_bounds_for_growing_k_are_the_expected_ones_and_increase():
    """Enumerated; 4,000 units share a datum, so that the errors of means over units are small."""
    datum = jnp.array(1.0)
    log_p, log_q = (models.binary_log_p(models.BINARY_THETA, datum), models.binary_log_q(models.BINARY_PHI, datum))
    params = models.BINARY_THETA | models.BINARY_PHI
    result = evaluate(KEY, params, models.binary_model, models.binary_guide, [(jnp.ones(4000),)], num_particles=25)
    sizes, bounds, errors = result.by_num_particles
    assert sizes.tolist() == [1, 10, 25]
    expected = [expected_bound(log_p, log_q, size) for size in sizes]
    assert np.all(np.abs(bounds - expected) < 5 * errors), (bounds, expected, errors)
    assert np.all(np.diff(bounds) > 0)
    assert bounds[-1] < logsumexp(log_p)
    over_units = result.bounds.std(axis=-1) / math.sqrt(4000)
    np.testing.assert_allclose(errors, over_units, rtol=0.1)  # units are alike, so their spread is that of particles
    assert result.standard_error_over_data == pytest.approx(over_units[-1], rel=1e-3)


def test_hand_numbers_on_four_particles():
    """Weights 1, 3 | 2, 2: with two particles the bound is the mean of log 2 and log 2.

    Of the first group wbar = (1, 3) / 4, so that its se is sqrt(2 / 8) = 1/2; that of the second is 0, and that of
    their mean sqrt(1/4) / 2.
    """
    log_w = jnp.log(jnp.array([[1.0], [3.0], [2.0], [2.0]]))
    summary = evidence.summarise(log_w, (1, 2, 4))
    np.testing.assert_allclose(summary.bounds[:, 0], [math.log(12) / 4, math.log(2), math.log(2)], rtol=1e-6)
    logs = np.log([1.0, 3.0, 2.0, 2.0])
    # wbar = (1, 3, 2, 2) / 8, of which the squares of the differences to 1/4 sum to 1/32
    np.testing.assert_allclose(summary.standard_errors[:, 0], [stats.sem(logs), 0.25, math.sqrt(4 / 3 / 32)], atol=1e-6)
    np.testing.assert_allclose(summary.effective_sample_size, 64 / 18, rtol=1e-6)
    assert evidence.sizes_up_to(1) == (1,)
    assert evidence.sizes_up_to(100) == (1, 10, 100)
    assert evidence.sizes_up_to(101) == (1, 10, 100, 101)


def test_batches_of_a_map_of_a_file_have_particles_of_their_own(tmp_path):
    np.save(tmp_path / "x.npy", np.repeat(X[:1], 25))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    result = evaluate(KEY, PARAMS, plate_model, plate_guide, in_slices(x, 10), num_particles=20)
    assert result.log_evidence.shape == (25,)
    assert isinstance(result.log_evidence, np.ndarray)
    assert len(np.unique(result.log_evidence)) == 25


def test_items_of_a_batch_come_before_other_arguments():
    def model(x, y, offset, scale):
        plate_model(x + y + offset * scale)

    def guide(x, y, offset, scale):
        plate_guide(x + y + offset * scale)

    batches = [(X[:3], X[:3]), [X[3:5], X[3:5]]]
    result = evaluate(KEY, PARAMS, model, guide, batches, 0.5, scale=2.0, num_particles=4)
    first, second = (
        evaluate(KEY, PARAMS, plate_model, plate_guide, [(2 * x + 1,)], num_particles=4) for x in (X[:3], X[3:5])
    )
    np.testing.assert_allclose(result.log_evidence[:3], first.log_evidence, rtol=1e-6)
    assert not np.allclose(result.log_evidence[3:], second.log_evidence)  # it is batch 0 there, and batch 1 here


@pytest.mark.slow
@pytest.mark.usefixtures("allow_key_reuse")
def test_evidence_of_a_minibatch_is_free_of_its_scale():
    model, guide = models.minibatch(models.one_model), models.minibatch(models.one_guide)
    params = {"mu": 0.2, "a": 0.3, "c": 0.7}
    x = X[:12]
    result = evaluate(KEY, params, model, guide, in_slices(x, 3), num_particles=500)
    exact = stats.norm.logpdf(x, 0.2, math.sqrt(1.25))
    assert np.all(np.abs(result.log_evidence - exact) < 5 * result.standard_error)


def test_programs_without_a_plate_have_a_number_for_each_batch():
    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(x.sum() / (len(x) + 1), 1.2 / math.sqrt(len(x) + 1)))

    batches = [(X[:3],), (X[3:5],)]
    result = evaluate(KEY, {}, model, guide, batches, num_particles=1000)
    exact = [stats.multivariate_normal.logpdf(x, cov=np.eye(len(x)) + 1.0) for (x,) in batches]
    assert np.all(np.abs(result.log_evidence - exact) < 5 * result.standard_error)
    assert result.of_batches
    assert "Evaluation of 2 batches, 1,000 particles each" in repr(result)
    assert "each batch is one unit" in repr(result)


def test_dead_units_and_nan_are_said_and_leave_the_others_alone():
    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
            numpyro.sample("x", dist.Exponential(z), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Gamma(jnp.full(len(x), 3.0), 1.0))

    with numpyro.validation_enabled(False):
        good = evaluate(KEY, {}, model, guide, [(np.float32([1.0, 2.0, 1.0]),)], num_particles=50)
        bad = evaluate(KEY, {}, model, guide, [(np.float32([1.0, -2.0, np.nan]),)], num_particles=50)
    assert good.log_evidence[0] == bad.log_evidence[0]
    assert bad.log_evidence[1] == -np.inf
    assert np.isnan(bad.log_evidence[2])
    assert (bad.num_dead_units, bad.num_nonfinite_units) == (1, 1)
    assert (good.num_dead_units, good.num_nonfinite_units) == (0, 0)
    assert bad.effective_sample_size[1] == 0
    assert bad.ess_min == 0
    text = repr(bad)
    assert "1 dead unit: no particle of non-zero weight, evidence -inf, and so mean and total" in text
    assert "1 unit with NaN or +inf among the log-weights" in text
    assert "The other 1:" in text


def test_masked_nan_is_no_data():
    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0).mask(~jnp.isnan(x)), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(jnp.where(jnp.isnan(x), 0.0, x / 2), 1.0))

    result = evaluate(KEY, {}, model, guide, [(np.float32([0.5, np.nan]),)], num_particles=50)
    assert result.num_nonfinite_units == 0
    assert result.log_evidence[1] == pytest.approx(0.0, abs=1e-6)  # the guide is the prior there


def branching_model(x):
    if numpyro.sample("k", dist.Bernoulli(0.4), infer=BRANCHES):
        numpyro.sample("x", dist.Normal(2.0, 1.0), obs=x)
    else:
        numpyro.sample("x", dist.Normal(-1.0, 0.7), obs=x)


def branching_guide(x):
    numpyro.sample("k", dist.Bernoulli(logits=numpyro.param("slope", 0.6) * x), infer=BRANCHES)


@pytest.mark.parametrize(
    "options",
    [{}, *(pytest.param(o, marks=pytest.mark.slow) for o in ({"vectorize_particles": False}, {"defensive": 0.3}))],
    ids=str,
)
def test_evidence_of_programs_that_branch(options):
    x, num = X[:3], 20 if "vectorize_particles" in options else 200
    result = evaluate(
        KEY,
        {"slope": 0.6},
        branching_model,
        branching_guide,
        in_slices(x, 2),
        num_particles=num,
        data_axes=0,
        **options,
    )
    exact = np.log(0.4 * stats.norm.pdf(x, 2.0, 1.0) + 0.6 * stats.norm.pdf(x, -1.0, 0.7))
    assert result.log_evidence.shape == (3,)
    assert not result.of_batches
    assert np.all(np.abs(result.log_evidence - exact) < 5 * result.standard_error)


@pytest.mark.slow
def test_a_defensive_guide_leaves_evidence_as_it_is():
    def defensive_guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(0.0, 2.0).expand([len(x)]))

    options = {"num_particles": 300, "defensive": 0.3, "defensive_guide": defensive_guide}
    result = evaluate(KEY, PARAMS, plate_model, plate_guide, [(X[:50],)], **options)
    assert np.all(np.abs(result.log_evidence - EXACT[:50]) < 5 * result.standard_error)


def shown_of(batches, capsys):
    rws_jax.evaluate(KEY, PARAMS, plate_model, plate_guide, batches, num_particles=4)
    return capsys.readouterr().err.replace("\n", "").split("\r")


@pytest.mark.parametrize(("num", "noun"), [(1, "1/1 batch"), (3, "3/3 batches")])
def test_the_bar_counts_batches_and_shows_no_rate_that_is_not_known(capsys, monkeypatch, num, noun):
    monkeypatch.setattr(evaluate_module, "tqdm", partial(evaluate_module.tqdm, ncols=100))
    with_end = shown_of([(X[:3],)] * num, capsys)
    without_end = shown_of(((X[:3],) for _ in range(num)), capsys)
    assert f"| {noun} [00:0" in with_end[-1]
    assert without_end[-1].startswith(f"{noun.split('/')[1]} [00:0")
    assert any("0 batches" in line and "compiling" in line for line in without_end)
    assert all("?" not in line and "/s" not in line for line in with_end + without_end)
    assert with_end[-1].endswith("of 4]")
    assert max(map(len, with_end)) <= 100


def test_what_is_done_by_ctrl_c_is_returned():
    def batches():
        yield (X[:3],)
        yield (X[3:6],)
        raise KeyboardInterrupt

    assert evaluate(KEY, PARAMS, plate_model, plate_guide, batches(), num_particles=4).num_units in (3, 6)


def test_it_prints_what_it_found():
    result = evaluate(KEY, PARAMS, plate_model, plate_guide, [(X,)], num_particles=10)
    lines = repr(result).splitlines()
    assert lines[0] == "Evaluation of 500 units, 10 particles each, in nats"
    assert [line.split("  ")[1] for line in lines[1:5]] == ["log evidence", "standard error", "bound by K", "ESS"]
    assert "over data" in lines[2]
    assert lines[3].split()[3] == "1:"
    assert jax.tree.structure(result).num_leaves == 4
    assert "unknown over particles" in repr(evaluate(KEY, PARAMS, plate_model, plate_guide, [(X,)], num_particles=1))


def one_to_one_model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_with(offset, scale):
    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(x / 2 + offset, scale))

    return guide


@pytest.mark.parametrize("num", [2, 10, 200, 1000])
def test_no_doubt_is_cast_on_a_good_guide(num):
    """Bounds rise from K = 1 with any guide, by 0.35 nats with the second, of which 77 % of particles are effective."""
    for offset, scale in ((0.0, 0.8), (0.0, 1.2)) if num > 2 else ((0.0, 0.8),):
        text = repr(evaluate(KEY, {}, one_to_one_model, guide_with(offset, scale), [(X[:300],)], num_particles=num))
        assert not any(word in text for word in ("still rises", "ESS is below", "What helps")), text


@pytest.mark.parametrize("num", [10, 1000])
def test_with_a_bad_guide_it_says_what_cannot_be_trusted(num):
    result = evaluate(KEY, {}, one_to_one_model, guide_with(2.0, 0.5), [(X[:300],)], num_particles=num)
    lines = [line.strip() for line in repr(result).splitlines()[5:]]
    smaller = result.by_num_particles.bounds[list(result.sizes).index(num // 10)]
    rise = f"The bound still rises, by {result.mean - smaller:.2g} nats per unit from K={num // 10} to K={num:,}"
    below = np.sum(result.effective_sample_size < 10)
    poor = [f"ESS is below 10 in {below} of 300 units: errors over particles are too small there."]
    assert lines == [
        f"{rise}: it is not yet an estimate of log evidence.",
        *(poor if num == 1000 else []),
        "What helps: more particles, a guide that is trained longer or is wider, or defensive=0.2.",
    ]


def test_doubts_of_one_unit_count_if_noise_does_not_explain_them():
    sizes, ess = np.array([1, 10, 100]), np.array([20.0])
    rise = lambda last, error: trust.rise(sizes, np.array([[-9.0], [-5.0], [last]]), np.full((3, 1), error), ess)
    assert rise(-4.0, 0.1) == (1.0, 10)
    assert rise(-4.0, 0.3) is None  # 3 s.e. of the difference are 1.27
    assert rise(-4.8, 0.01) is None  # a ninth of it is to come
    assert rise(-np.inf, 0.01) is None
    assert trust.rise(sizes[:1], np.zeros((1, 1)), np.zeros((1, 1)), ess) is None
    assert [trust.num_poor(np.array([0.0, 0.9, 4.0, 8.0]), num) for num in (5, 100, 1000)] == [
        (0.5, 0),
        (5, 2),
        (10, 3),
    ]


def test_endless_batches_and_data_in_place_of_batches_are_refused():
    call = lambda batches, **options: lambda: evaluate(KEY, PARAMS, plate_model, plate_guide, batches, **options)
    endless = rws_jax.minibatches(KEY, 10, X)
    refused(ValueError, call(endless), "argument 'batches' of evaluate has no end", "epochs=1")
    assert call(rws_jax.minibatches(KEY, 100, X, epochs=1), num_particles=2)().num_units == 500
    refused(TypeError, call(X), "argument 'batches' is data and no iterable of batches", "float32[500]", "[(x,)]")
    refused(TypeError, call({"x": X}), "argument 'batches' is data", "a dict", "[(x,)]")
    refused(TypeError, call(None), "argument 'batches' has the wrong type", "NoneType")
    refused(TypeError, call(3), "argument 'batches' has the wrong type", "int")
    refused(ValueError, call([]), "argument 'batches' has no batch", "ends at once")
    refused(ValueError, call([(X,)], num_particles=0), "option 'num_particles' is too small")
    refused(TypeError, call([(X,)], insomnia=0.5), "evaluate has no option 'insomnia'", "see help(rws_jax.evaluate)")
    refused(TypeError, lambda: evaluate(0, PARAMS, plate_model, plate_guide, [(X,)]), "the first argument of evaluate")
    traced = lambda key: evaluate(key, PARAMS, plate_model, plate_guide, [(X,)]).bounds
    refused(TypeError, lambda: jax.jit(traced)(KEY), "evaluate is called inside of jit, scan or vmap")
