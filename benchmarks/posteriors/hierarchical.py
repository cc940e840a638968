"""Six groups of four observations: a common mean and scale, the groups' means, the data. A datum is all of it."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from posteriors import NUM_DATA
from posteriors.networks import network, normal, normal_mixture

NUM_GROUPS, NUM_OBSERVATIONS = 6, 4
SHAPES = {"x": np.zeros((NUM_DATA, NUM_GROUPS, NUM_OBSERVATIONS), np.float32)}
DATA_AXES = 0
MEAN_SCALE, LOG_SCALE = 2.0, (-0.5, 0.7)


def model(x):
    """Plates within each other."""
    mean = numpyro.sample("mean", dist.Normal(0.0, MEAN_SCALE))
    log_scale = numpyro.sample("log_scale", dist.Normal(*LOG_SCALE))
    with numpyro.plate("groups", x.shape[0], dim=-2):
        group = numpyro.sample("group", dist.Normal(mean, jnp.exp(log_scale)))
        with numpyro.plate("observations", x.shape[1], dim=-1):
            numpyro.sample("x", dist.Normal(group, 1.0), obs=x)


def mean_field(x):
    """The globals from a network of all group means, each group's from one of its own."""
    means = x.mean(axis=1)
    outputs = network("globals", 2, 4)(jnp.stack([means.mean(), jnp.log(means.var())]))
    of_groups = network("groups", 2, 2)(jnp.stack([means, jnp.full_like(means, means.mean())], axis=-1))
    numpyro.sample("mean", normal(outputs[:2], means.mean()))
    numpyro.sample("log_scale", normal(outputs[2:], *LOG_SCALE))
    with numpyro.plate("groups", x.shape[0], dim=-2):
        numpyro.sample("group", normal(of_groups[:, None], means[:, None]))


def by_hand(x):
    """The scale by a network of the statistics it depends on, all else exactly given that."""
    means, num = x.mean(axis=1), x.shape[1]
    grand = means.mean()
    outputs = network("scale", 2, 9)(jnp.stack([jnp.log(means.var()), grand**2 / 10.0]))
    log_scale = numpyro.sample("log_scale", normal_mixture(outputs, 3, *LOG_SCALE))
    variance = jnp.exp(2 * log_scale)
    of_means = len(means) / (variance + 1 / num)  # precision of the grand mean, given the common one
    precision = of_means + MEAN_SCALE**-2
    mean = numpyro.sample("mean", dist.Normal(of_means * grand / precision, precision**-0.5))
    precision = num + 1 / variance
    with numpyro.plate("groups", len(means), dim=-2):
        loc = (num * means[:, None] + mean / variance) / precision
        numpyro.sample("group", dist.Normal(loc, precision**-0.5))


def log_evidence(x):
    """Normal given the scale, which is integrated over by the trapezoidal rule on a fine grid."""
    grid = np.linspace(LOG_SCALE[0] - 8 * LOG_SCALE[1], LOG_SCALE[0] + 8 * LOG_SCALE[1], 400)
    same_group = np.kron(np.eye(NUM_GROUPS), np.ones((NUM_OBSERVATIONS, NUM_OBSERVATIONS)))
    rows = np.asarray(x, float).reshape(len(x), -1)
    terms = []
    for log_scale in grid:
        covariance = MEAN_SCALE**2 + np.exp(2 * log_scale) * same_group + np.eye(len(same_group))
        terms.append(norm.logpdf(log_scale, *LOG_SCALE) + multivariate_normal(cov=covariance).logpdf(rows))
    return logsumexp(terms, axis=0) + np.log(grid[1] - grid[0])
