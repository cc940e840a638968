"""Two latents that are independent until their sum is observed: conjugate."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.stats import multivariate_normal

from posteriors import NUM_DATA
from posteriors.networks import network, normal

SHAPES = {"x": np.zeros(NUM_DATA, np.float32), "y": np.zeros(NUM_DATA, np.float32)}
DATA_AXES = None
SUM_SCALE, OWN_SCALE = 0.3, 1.0


def model(x, y):
    """Their sum with small noise, and one of them with more."""
    with numpyro.plate("data", len(x)):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(a + b, SUM_SCALE), obs=x)
        numpyro.sample("y", dist.Normal(b, OWN_SCALE), obs=y)


def mean_field(x, y):
    """Two normal distributions."""
    outputs = network("q", 2, 4)(jnp.stack([x, y], axis=-1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("a", normal(outputs[:, :2]))
        numpyro.sample("b", normal(outputs[:, 2:]))


def by_hand(x, y):
    """Exact: b given the data, then a given b."""
    sum_precision, own_precision, prior = SUM_SCALE**-2, OWN_SCALE**-2, 1.0
    x_precision = 1 / (1.0 + SUM_SCALE**2)  # of x given b
    precision = prior + own_precision + x_precision
    with numpyro.plate("data", len(x)):
        b = numpyro.sample("b", dist.Normal((own_precision * y + x_precision * x) / precision, precision**-0.5))
        precision = prior + sum_precision
        numpyro.sample("a", dist.Normal(sum_precision * (x - b) / precision, precision**-0.5))


def log_evidence(x, y):
    """A normal distribution of two dimensions."""
    covariance = np.array([[2.0 + SUM_SCALE**2, 1.0], [1.0, 1.0 + OWN_SCALE**2]])
    return multivariate_normal([0.0, 0.0], covariance).logpdf(np.stack([x, y], axis=-1))
