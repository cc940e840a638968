"""Location and scale of priors in unconstrained coordinates, against those of many draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from rws_jax.guides.proposals.coordinates import coordinates_of
from rws_jax.guides.proposals.frame import frame_of

SCALE = jnp.array([[2.0, 0.0, 0.0], [0.5, 1.0, 0.0], [-0.3, 0.4, 0.7]])
EXACT = [
    dist.Normal(1.0, 2.0),
    dist.LogNormal(1.0, 0.5),
    dist.Gamma(3.0, 2.0),
    dist.InverseGamma(3.0, 2.0),
    dist.Exponential(2.0),
    dist.Beta(2.0, 3.0),
    dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])),
    dist.Uniform(-1.0, 3.0),
    dist.HalfNormal(2.0),
    dist.HalfCauchy(2.0),
    dist.LKJCholesky(4, 1.5),
    dist.Wishart(5.0, scale_tril=SCALE),
    dist.MultivariateNormal(jnp.ones(3), scale_tril=SCALE),
    dist.TransformedDistribution(dist.Normal(1.0, 2.0), dist.transforms.AffineTransform(1.0, -3.0)),
]
ROUGH = [
    dist.Cauchy(1.0, 2.0),
    dist.StudentT(1.5, 1.0, 2.0),
    dist.Weibull(2.0, 1.5),
    dist.LogUniform(0.1, 10.0),
    dist.TruncatedNormal(0.5, 1.0, low=-1.0, high=2.0),
    dist.Gumbel(1.0, 2.0),
    dist.LKJ(3, 0.5),
    dist.TransformedDistribution(dist.Gamma(2.0, 1.0), dist.transforms.PowerTransform(0.5)),
]


def with_slow(priors, *fast):
    slow = lambda fn: () if type(fn) in fast else pytest.mark.slow
    return [pytest.param(fn, id=type(fn).__name__, marks=slow(fn)) for fn in priors]


def coordinates_of_draws(fn, num):
    run = jax.jit(lambda key: coordinates_of(fn).inverse(jax.vmap(fn.sample)(jax.random.split(key, num)))[0])
    return np.asarray(run(jax.random.key(0)), float)


@pytest.mark.parametrize("fn", with_slow(EXACT, dist.Gamma, dist.Dirichlet))
def test_moments_that_are_known(fn):
    """Within 5 standard errors, that of a standard deviation by the fourth moment."""
    x = coordinates_of_draws(fn, 5000)
    location, scale = (np.asarray(part) for part in frame_of(fn))
    assert np.all(np.abs(x.mean(0) - location) < 5.0 * x.std(0) / np.sqrt(len(x)))
    squares = (x - x.mean(0)) ** 2
    error = squares.std(0) / (2.0 * x.std(0) * np.sqrt(len(x)))
    assert np.all(np.abs(x.std(0) - scale) < 5.0 * error)


@pytest.mark.parametrize("fn", with_slow(ROUGH, dist.Cauchy, dist.TransformedDistribution))
def test_moments_that_are_not(fn):
    """The middle half of draws lies about the location, and its width is that of the scale within a factor of three."""
    quartiles = np.percentile(coordinates_of_draws(fn, 2000), [25, 50, 75], axis=0)
    location, scale = (np.asarray(part) for part in frame_of(fn))
    width = (quartiles[2] - quartiles[0]) / 1.349
    assert np.all(np.abs(location - quartiles[1]) < 2.0 * width)
    assert np.all((scale < 3.0 * width) & (scale > width / 3.0))
