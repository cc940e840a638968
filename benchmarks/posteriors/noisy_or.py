"""Eight causes of six effects: each cause that is there may bring about an effect, and so explains it away."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.nn import logsumexp
from scipy import special

from posteriors import NUM_DATA
from posteriors.networks import network

NUM_CAUSES, NUM_EFFECTS = 8, 6
SHAPES = {"x": np.zeros((NUM_DATA, NUM_EFFECTS), np.int32)}
DATA_AXES = None
PRIOR = np.linspace(0.1, 0.4, NUM_CAUSES)
LEAK = 0.01
STATES = np.array(list(itertools.product([0, 1], repeat=NUM_CAUSES)))


def strengths():
    """Probability that a cause brings about an effect; about half of them are zero."""
    rng = np.random.default_rng(0)
    shape = NUM_CAUSES, NUM_EFFECTS
    return np.where(rng.random(shape) < 0.5, 0.0, rng.uniform(0.5, 0.95, shape))


LOG_FAILS = np.log1p(-strengths())


def model(x):
    """A site for each cause, one for all effects."""
    with numpyro.plate("data", len(x)):
        log_fails = jnp.log1p(-LEAK)
        for i in range(NUM_CAUSES):
            cause = numpyro.sample(f"cause_{i}", dist.Bernoulli(PRIOR[i]))
            log_fails = log_fails + cause[:, None] * LOG_FAILS[i][None]
        numpyro.sample("x", dist.Bernoulli(-jnp.expm1(log_fails)).to_event(1), obs=x)


def mean_field(x):
    """A probability for each cause."""
    logits = network("q", NUM_EFFECTS, NUM_CAUSES)(2.0 * x - 1.0) + special.logit(PRIOR)[None]
    with numpyro.plate("data", len(x)):
        for i in range(NUM_CAUSES):
            numpyro.sample(f"cause_{i}", dist.Bernoulli(logits=logits[:, i]))


def by_hand(x):
    """Exact: each cause given the data and the causes before, from the table of all 256 states."""
    log_joint = log_table(jnp, x)
    with numpyro.plate("data", len(x)):
        for i in range(NUM_CAUSES):
            is_on = STATES[:, i] == 1
            log_off, log_on = jnp.where(is_on, -jnp.inf, log_joint), jnp.where(is_on, log_joint, -jnp.inf)
            logits = logsumexp(log_on, axis=-1) - logsumexp(log_off, axis=-1)
            cause = numpyro.sample(f"cause_{i}", dist.Bernoulli(logits=logits))
            log_joint = jnp.where(STATES[:, i] == cause[:, None], log_joint, -jnp.inf)


def log_evidence(x):
    """The sum over all states."""
    return special.logsumexp(log_table(np, x), axis=-1)


def log_table(xp, x):
    """Log p(causes, x) for each datum and state, by NumPy or JAX."""
    log_prior = (STATES * np.log(PRIOR) + (1 - STATES) * np.log1p(-PRIOR)).sum(axis=1)
    log_off = STATES @ LOG_FAILS + np.log1p(-LEAK)
    log_on = np.log(-np.expm1(log_off))
    return log_prior[None] + x @ xp.asarray(log_on.T) + (1 - x) @ xp.asarray(log_off.T)
