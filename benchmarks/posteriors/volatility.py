"""Stochastic volatility: the logarithm of a variance moves on in a `scan` of 15 steps; not conjugate."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from scipy.special import logsumexp
from scipy.stats import norm

from posteriors import NUM_DATA
from posteriors.networks import network, normal, recurrent

NUM_STEPS, NUM_UNITS = 15, 32
SHAPES = {"x": np.zeros((NUM_DATA, NUM_STEPS), np.float32)}
DATA_AXES = 0
DECAY, DRIFT = 0.9, 0.6


def model(x):
    """A series."""

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(DECAY * z, DRIFT))
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(z / 2)), obs=x)
        return z, None

    scan(step, 0.0, x)


def mean_field(x):
    """The states by themselves, all of them from one network of the series."""
    outputs = network("q", NUM_STEPS, 2 * NUM_STEPS)(log_square(x)).reshape(NUM_STEPS, 2)

    def step(carry, outputs):
        numpyro.sample("z", normal(outputs))
        return carry, None

    scan(step, None, outputs)


def by_hand(x):
    """A recurrent network from the end of the series, then each state given the one before."""
    summaries = recurrent("backward", 1, NUM_UNITS)(log_square(x)[:, None])
    head = network("state", NUM_UNITS + 1, 2, hidden=32)

    def step(z, summary):
        outputs = head(jnp.concatenate([summary, z[None]]))
        z = numpyro.sample("z", normal(outputs, DECAY * z, DRIFT))
        return z, None

    scan(step, jnp.zeros(()), summaries)


def log_square(x):
    """What a network can read off the scale of x."""
    return jnp.log(x**2 + 0.01)


def log_evidence(x):
    """By a filter on a fine grid of states."""
    grid = np.linspace(-11.0, 11.0, 601)
    log_step = np.log(grid[1] - grid[0])
    log_transition = norm.logpdf(grid, DECAY * grid[:, None], DRIFT) + log_step
    log_state = np.broadcast_to(norm.logpdf(grid, 0.0, DRIFT) + log_step, (len(x), len(grid)))
    for value in np.asarray(x, float).T[:-1]:
        log_state = log_state + norm.logpdf(value[:, None], 0.0, np.exp(grid / 2))
        log_max = log_state.max(axis=1, keepdims=True)
        log_state = np.log(np.exp(log_state - log_max) @ np.exp(log_transition) + 1e-300) + log_max
    return logsumexp(log_state + norm.logpdf(np.asarray(x, float)[:, -1:], 0.0, np.exp(grid / 2)), axis=1)
