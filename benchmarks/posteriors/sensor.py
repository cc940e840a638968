"""The example of docs/control_flow.md: a sensor reports a location with small noise, or anything. Python branches."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import logit
from scipy.stats import norm

from posteriors import NUM_DATA
from posteriors.networks import BRANCHES, network, normal

SHAPES = {"x": np.zeros(NUM_DATA, np.float32)}
DATA_AXES = 0
P = 0.7


def model(x):
    """A location only where the sensor works."""
    works = numpyro.sample("works", dist.Bernoulli(P), infer=BRANCHES)
    if works:
        loc = numpyro.sample("loc", dist.Normal(0.0, 2.0))
        numpyro.sample("x", dist.Normal(loc, 0.5), obs=x)
    else:
        numpyro.sample("x", dist.Normal(0.0, 10.0), obs=x)


def mean_field(x):
    """A network for each of both sites."""
    near, log_far = jnp.tanh(x / 3.0), jnp.log1p(x**2)
    logit_works, outputs = (network(name, 2, num)(jnp.stack([near, log_far])) for name, num in (("w", 1), ("l", 2)))
    if numpyro.sample("works", dist.Bernoulli(logits=logit(P) + logit_works[0]), infer=BRANCHES):
        numpyro.sample("loc", normal(outputs, x))


def by_hand(x):
    """Exact."""
    log_odds = dist.Normal(0.0, 4.25**0.5).log_prob(x) - dist.Normal(0.0, 10.0).log_prob(x)
    if numpyro.sample("works", dist.Bernoulli(logits=logit(P) + log_odds), infer=BRANCHES):
        numpyro.sample("loc", dist.Normal(4.0 * x / 4.25, 4.25**-0.5))


def log_evidence(x):
    """Both branches are normal."""
    return np.logaddexp(np.log(P) + norm.logpdf(x, 0.0, 4.25**0.5), np.log(1 - P) + norm.logpdf(x, 0.0, 10.0))
