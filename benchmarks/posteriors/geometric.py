"""A coin is thrown until it falls on the other side; how often that took is observed with noise. Python loops."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.nn import logsumexp
from scipy import special
from scipy.stats import norm

from posteriors import NUM_DATA
from posteriors.networks import BRANCHES, network

SHAPES = {"x": np.zeros(NUM_DATA, np.float32)}
DATA_AXES = 0
P, SCALE, MAX = 0.5, 0.7, 200


def model(x):
    """A site for each throw."""
    num = 0
    while numpyro.sample(f"flip_{num}", dist.Bernoulli(P), infer=BRANCHES):
        num += 1
    numpyro.sample("x", dist.Normal(num, SCALE), obs=x)


def mean_field(x):
    """The same probability for all throws of a datum."""
    logit = special.logit(P) + network("q", 1, 1)(x[None] / 3.0)[0]
    num = 0
    while numpyro.sample(f"flip_{num}", dist.Bernoulli(logits=logit), infer=BRANCHES):
        num += 1


def by_hand(x):
    """Exact: whether there are more throws, given that there have been so many."""
    nums = jnp.arange(MAX)
    log_joint = nums * jnp.log(P) + dist.Normal(nums, SCALE).log_prob(x)
    num = 0
    logit = lambda num: logsumexp(log_joint[num + 1 :]) - log_joint[num]
    while numpyro.sample(f"flip_{num}", dist.Bernoulli(logits=logit(num)), infer=BRANCHES):
        num += 1


def log_evidence(x):
    """The sum over numbers of throws, up to one that is never reached."""
    nums = np.arange(MAX)
    log_prior = nums * np.log(P) + np.log(1 - P)
    return special.logsumexp(log_prior + norm.logpdf(np.asarray(x, float)[:, None], nums, SCALE), axis=1)
