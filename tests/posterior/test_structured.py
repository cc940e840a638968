"""What comes after training, of particles whose parts have weights: local particles that are chosen, and filtering."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.stats import multivariate_normal

import rws_jax

Y = np.random.default_rng(0).normal(size=(3, 2, 2)) + np.array([1.0, -1.0, 0.5])[:, None, None]
NUM_KEYS = 8


def schools(y):
    """Three levels; what the innermost draws are vectors. All scales are one."""
    g = numpyro.sample("g", dist.Normal(0.0, 1.0))
    with numpyro.plate("districts", 3, dim=-2):
        d = numpyro.sample("d", dist.Normal(g, 1.0))
        with numpyro.plate("schools", 2, dim=-1):
            s = numpyro.sample("s", dist.Normal(d[..., None], 1.0).expand([3, 2, 2]).to_event(1))
            numpyro.sample("y", dist.Normal(s, 1.0).to_event(1), obs=y)


def schools_guide(y):
    numpyro.sample("g", dist.Normal(0.3, 0.8))
    with numpyro.plate("districts", 3, dim=-2):
        d = numpyro.sample("d", dist.Normal(0.5 * y.mean((1, 2))[:, None], 0.8))
        with numpyro.plate("schools", 2, dim=-1):
            numpyro.sample("s", dist.Normal(0.4 * d[..., None] + 0.4 * y, 0.9).to_event(1))


def precision_of_schools(with_data):
    """Of g, d and s, by the edges of the tree; each datum adds one to the number that it is of."""
    precision = np.zeros((16, 16))
    for place, parent in enumerate([None, 0, 0, 0, *[1 + i // 4 for i in range(12)]]):
        precision[place, place] += 1.0
        if parent is not None:
            precision[parent, parent] += 1.0
            precision[place, parent] = precision[parent, place] = -1.0
    precision[range(4, 16), range(4, 16)] += float(with_data)
    return precision


def exact_schools():
    """Log evidence and posterior means, by linear algebra."""
    covariance = np.linalg.inv(precision_of_schools(with_data=False))[4:, 4:] + np.eye(12)
    mean = np.linalg.solve(precision_of_schools(with_data=True), np.concatenate([np.zeros(4), Y.ravel()]))
    by_site = {"g": mean[0], "d": mean[1:4, None], "s": mean[4:].reshape(3, 2, 2)}
    return multivariate_normal(np.zeros(12), covariance).logpdf(Y.ravel()), by_site


@cache
def nested_samples():
    draw = lambda key: rws_jax.importance_sample(
        key, {}, schools, schools_guide, jnp.asarray(Y, jnp.float32), num_particles=1000, num_local_particles=4
    )
    return [draw(key) for key in jax.random.split(jax.random.key(0), NUM_KEYS)]


def test_chosen_local_particles_follow_the_posterior():
    """Each at its own element and level, whatever its shape: means within 5 s.e."""
    _, expected = exact_schools()
    found = [weighted.expectation() for weighted in nested_samples()]
    for name, mean in expected.items():
        values = np.stack([one.value[name] for one in found])
        errors = np.stack([one.standard_error[name] for one in found])
        assert values.shape[1:] == np.shape(mean)
        error = np.sqrt((errors**2).sum(axis=0)) / NUM_KEYS
        assert (np.abs(values.mean(axis=0) - mean) < 5 * error).all(), name
        assert (error < 0.05).all()


def test_chosen_local_particles_go_with_what_is_around_them():
    """E[(s - d)^2] is that of the posterior: with the draws of another particle around them it would be larger."""
    square = lambda z: jnp.square(z["s"] - z["d"][..., None])
    found = [weighted.expectation(square) for weighted in nested_samples()]
    values, errors = (np.stack([getattr(one, field) for one in found]) for field in ("value", "standard_error"))
    mean, error = values.mean(axis=0), np.sqrt((errors**2).sum(axis=0)) / NUM_KEYS
    _, expected = exact_schools()
    exact = variance_of_differences() + (expected["s"] - expected["d"][..., None]) ** 2
    assert (np.abs(mean - exact) < 5 * error).all()
    assert (error < 0.1).all()


def variance_of_differences():
    """Of s - d in the posterior, for every school and number."""
    covariance = np.linalg.inv(precision_of_schools(with_data=True))
    of_pair = lambda s, d: covariance[s, s] + covariance[d, d] - 2.0 * covariance[s, d]
    return np.array([of_pair(4 + i, 1 + i // 4) for i in range(12)]).reshape(3, 2, 2)


def test_evidence_of_nested_particles_has_an_honest_error():
    log_evidence, _ = exact_schools()
    estimates = [weighted.log_evidence() for weighted in nested_samples()]
    values, errors = np.array([(one.value, one.standard_error) for one in estimates]).T
    assert abs(values.mean() - log_evidence) < 5 * np.sqrt((errors**2).sum()) / NUM_KEYS
    assert (errors < 0.1).all()
    assert 0.3 < values.std(ddof=1) / errors.mean() < 2.5
    assert all(weighted.nested for weighted in nested_samples())


def test_advice_on_nested_particles_names_what_they_can_have():
    """Not the option that they have, nor one that is refused with it."""
    far = lambda y: schools_guide(0.0 * y - 9.0)
    how = {"num_particles": 100, "num_local_particles": 2}
    few = rws_jax.importance_sample(jax.random.key(0), {}, schools, far, jnp.asarray(Y, jnp.float32), **how)
    text = " ".join(repr(few).split())
    assert "draw more particles, by num_particles and by num_local_particles" in text
    assert "defensive" not in text
    assert "may give" not in text


SERIES = jnp.array([0.5, 2.0, -1.0, 0.3, 1.5, 0.7])


def series(x):
    def step(z, x):
        z = numpyro.sample("z", dist.Normal(0.8 * z, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
        return z, None

    scan(step, 0.0, x)


def series_guide(x):
    scan(lambda z, x: (numpyro.sample("z", dist.Normal(0.6 * x + 0.1 * z, 0.8)),) * 2, 0.0, x)


def kalman_means():
    """Of each state, given the data up to its step, and log evidence of these data."""
    mean, variance, total, means, totals = 0.0, 0.0, 0.0, [], []
    for value in np.asarray(SERIES):
        mean, variance = 0.8 * mean, 0.64 * variance + 1.0
        total += -0.5 * (np.log(2 * np.pi * (variance + 0.25)) + (value - mean) ** 2 / (variance + 0.25))
        gain = variance / (variance + 0.25)
        mean, variance = mean + gain * (value - mean), (1.0 - gain) * variance
        means.append(mean)
        totals.append(total)
    return np.array(means), np.array(totals)


@pytest.mark.parametrize("data_axes", [None, 0])
def test_filtering_draws_have_the_weights_of_the_data_up_to_their_step(data_axes):
    x = SERIES if data_axes is None else jnp.stack([SERIES, -SERIES])
    how = {"num_particles": 2000, "resample": "systematic", "data_axes": data_axes}
    draw = lambda key: rws_jax.importance_sample(key, {}, series, series_guide, x, **how)
    weighted = [draw(key) for key in jax.random.split(jax.random.key(0), 6)]
    means, totals = kalman_means()
    if data_axes is not None:
        means, totals = np.stack([means, -means]), np.stack([totals, totals])
    for found, exact in (
        ([one.filtering.expectation().value["z"] for one in weighted], means),
        ([one.filtering.log_evidence().value for one in weighted], totals),
    ):
        values = np.stack(found)
        assert values.shape[1:] == exact.shape
        np.testing.assert_allclose(values.mean(axis=0), exact, atol=5 * values.std(axis=0).max() / np.sqrt(6))
        assert values.std(axis=0).max() < 0.1
    one = weighted[0]
    assert np.isnan(one.log_evidence().standard_error).all()
    assert np.isnan(one.expectation().standard_error["z"]).all()
    assert np.isnan(one.pareto_k()).all()
    assert one.filtering.units[-1] == "step"
    assert "by the data up to it" in repr(one.filtering)
    ordinary = rws_jax.importance_sample(jax.random.key(0), {}, series, series_guide, SERIES, num_particles=30)
    assert ordinary.filtering is None
    assert not ordinary.resampled
