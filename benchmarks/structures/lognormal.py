"""Counts whose log rates are normal around an unknown mean; the spread of the log rates is learned."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, logsumexp

NUM_DATA, MEAN, TAU = 1000, 0.5, 0.7


def model(counts):
    """A common mean, a log rate for each count; `tau` is a parameter."""
    tau = numpyro.param("tau", 0.3, constraint=dist.constraints.positive)
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(counts)):
        log_rate = numpyro.sample("log_rate", dist.Normal(mean, tau))
        numpyro.sample("count", dist.Poisson(jnp.exp(log_rate)), obs=counts)


def guide(counts):
    """A normal mean; normal log rates, location and log of the scale linear in the logarithm of the count."""
    loc = numpyro.param("loc", 0.0)
    scale = numpyro.param("scale", 0.3, constraint=dist.constraints.positive)
    weights = numpyro.param("weights", jnp.array([[0.0, -1.0], [0.0, 0.0]]))
    numpyro.sample("mean", dist.Normal(loc, scale))
    outputs = jnp.stack([jnp.ones_like(counts), jnp.log1p(counts)], axis=-1) @ weights
    with numpyro.plate("data", len(counts)):
        numpyro.sample("log_rate", dist.Normal(outputs[:, 0], jnp.exp(outputs[:, 1])))


def draw(seed):
    """Counts of the model."""
    rng = np.random.default_rng(seed)
    rates = np.exp(MEAN + TAU * rng.standard_normal(NUM_DATA))
    return jnp.asarray(rng.poisson(rates), float)


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
MEANS = np.linspace(-1.0, 2.0, 1201)


def posterior(counts, tau):
    """The log evidence, and the posterior mean and standard deviation of `mean`, by quadrature over both latents."""
    counts = np.asarray(counts, int)
    values = np.arange(counts.max() + 1)[:, None]
    log_rate = MEANS[:, None, None] + tau * NODES
    log_p = values * log_rate - np.exp(log_rate) - gammaln(values + 1)
    log_p = logsumexp(log_p, b=WEIGHTS / np.sqrt(2 * np.pi), axis=-1) @ np.bincount(counts)
    log_p = log_p - MEANS**2 / 2 - np.log(2 * np.pi) / 2
    log_evidence = logsumexp(log_p) + np.log(MEANS[1] - MEANS[0])
    p = np.exp(log_p - logsumexp(log_p))
    mean = p @ MEANS
    return log_evidence, mean, np.sqrt(p @ (MEANS - mean) ** 2)


def best_tau(counts, step=0.02):
    """The value of `tau` with the highest evidence, and its standard error from the curvature there."""
    log_evidence = lambda tau: posterior(counts, tau)[0]
    tau = minimize_scalar(lambda tau: -log_evidence(tau), bounds=(0.3, 1.5), method="bounded").x
    curvature = (log_evidence(tau + step) - 2 * log_evidence(tau) + log_evidence(tau - step)) / step**2
    return tau, (-curvature) ** -0.5
