"""A linear Gaussian state-space model of 15 steps, by NumPyro's `scan`."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from scipy.stats import norm

from posteriors import NUM_DATA
from posteriors.networks import network, normal

NUM_STEPS = 15
SHAPES = {"x": np.zeros((NUM_DATA, NUM_STEPS), np.float32)}
DATA_AXES = 0
DECAY, DRIFT, NOISE = 0.9, 0.5, 0.5  # the last two are standard deviations


def model(x):
    """A series."""

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(DECAY * z, DRIFT))
        numpyro.sample("x", dist.Normal(z, NOISE), obs=x)
        return z, None

    scan(step, 0.0, x)


def mean_field(x):
    """The states by themselves, all of them from one network of the series."""
    outputs = network("q", NUM_STEPS, 2 * NUM_STEPS)(x).reshape(NUM_STEPS, 2)

    def step(carry, outputs):
        numpyro.sample("z", normal(outputs))
        return carry, None

    scan(step, None, outputs)


def by_hand(x):
    """Exact: messages from the end of the series, then each state given the one before."""

    def backward(message, x):
        precision, shift = message  # of exp(-precision z^2 / 2 + shift z), for p(what follows | z)
        message = precision + NOISE**-2, shift + x / NOISE**2
        total = 1 + DRIFT**2 * message[0]
        return (DECAY**2 * message[0] / total, DECAY * message[1] / total), message

    _, messages = jax.lax.scan(backward, (jnp.zeros(()), jnp.zeros(())), x, reverse=True)

    def step(z, message):
        precision = DRIFT**-2 + message[0]
        z = numpyro.sample("z", dist.Normal((DECAY * z / DRIFT**2 + message[1]) / precision, precision**-0.5))
        return z, None

    scan(step, 0.0, messages)


def log_evidence(x):
    """By Kalman's filter."""
    x = np.asarray(x, float)
    mean, variance, total = np.zeros(len(x)), 0.0, np.zeros(len(x))
    for value in x.T:
        mean, variance = DECAY * mean, DECAY**2 * variance + DRIFT**2
        total += norm.logpdf(value, mean, (variance + NOISE**2) ** 0.5)
        gain = variance / (variance + NOISE**2)
        mean, variance = mean + gain * (value - mean), (1 - gain) * variance
    return total
