"""A linear Gaussian series: an autoregression seen with noise, and Kalman's filter."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from scipy.optimize import minimize

TRUTH = {"decay": 0.9, "drift": 1.0, "noise": 0.5}  # the last two are standard deviations
positive = dist.constraints.positive


def given(x, decay, drift, noise):
    """A series of these parameters."""

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(decay * z, drift))
        numpyro.sample("x", dist.Normal(z, noise), obs=x)
        return z, None

    scan(step, 0.0, x)


def model(x):
    """All parameters are learned, from far off."""
    decay, drift = numpyro.param("decay", 0.5), numpyro.param("drift", 0.7, constraint=positive)
    given(x, decay, drift, numpyro.param("noise", 0.6, constraint=positive))


def true_model(x):
    """With the parameters that data are drawn from."""
    given(x, **TRUTH)


def guide_from(weights=(0.5, 0.5), scale=0.5):
    """Each state by the one before and its observation, from these parameters; the optimal proposal has this form."""

    def guide(x):
        values = numpyro.param("weights", jnp.array(weights))
        width = numpyro.param("scale", jnp.array(scale), constraint=positive)

        def step(z, x):
            z = numpyro.sample("z", dist.Normal(values @ jnp.stack([z, x]), width))
            return z, None

        scan(step, 0.0, x)

    return guide


guide = guide_from()


def optimum(decay, drift, noise):
    """The guide that proposes each state exactly, given the one before and its observation."""
    variance = 1 / (1 / drift**2 + 1 / noise**2)
    return {"weights": (variance * decay / drift**2, variance / noise**2), "scale": variance**0.5}


def prior(decay, drift, noise):
    """The guide that is the prior."""
    return {"weights": (decay, 0.0), "scale": drift}


def draw(num_steps, num_series):
    """Series by a fixed seed, shape ``(series, steps)``."""

    def step(z, rng_key):
        keys = jax.random.split(rng_key)
        z = TRUTH["decay"] * z + TRUTH["drift"] * jax.random.normal(keys[0], (num_series,))
        return z, z + TRUTH["noise"] * jax.random.normal(keys[1], (num_series,))

    return jax.lax.scan(step, jnp.zeros(num_series), jax.random.split(jax.random.key(0), num_steps))[1].T


def log_evidence(x, decay, drift, noise):
    """Of each series, by Kalman's filter."""
    mean, variance, total = 0.0, 0.0, 0.0
    for value in np.asarray(x, float).T:
        mean, variance = decay * mean, decay**2 * variance + drift**2
        of_value = variance + noise**2
        total = total - ((value - mean) ** 2 / of_value + np.log(2 * np.pi * of_value)) / 2
        mean, variance = mean + variance / of_value * (value - mean), variance * noise**2 / of_value
    return total


def best(x):
    """The parameters of the highest evidence of all series, by direct search."""
    unpack = lambda values: {"decay": values[0], "drift": np.exp(values[1]), "noise": np.exp(values[2])}
    start = [TRUTH["decay"], np.log(TRUTH["drift"]), np.log(TRUTH["noise"])]
    found = minimize(lambda values: -log_evidence(x, **unpack(values)).sum(), start, method="Nelder-Mead", tol=1e-6)
    return unpack(found.x)
