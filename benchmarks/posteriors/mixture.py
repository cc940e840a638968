"""A mixture whose four branches have different latents: none, one or two of them. Python branches."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import logsumexp
from scipy.stats import norm

from posteriors import NUM_DATA
from posteriors.networks import BRANCHES, network, normal

SHAPES = {"x": np.zeros(NUM_DATA, np.float32)}
DATA_AXES = 0
P = np.array([0.3, 0.3, 0.25, 0.15])
MARGINALS = np.array([-3.0, 0.0, 3.0, 0.0]), np.array([0.7**2, 2.0**2 + 0.5**2, 1.0 + 1.0 + 0.5**2, 6.0**2])


def model(x):
    """A site of all branches is the observation."""
    branch = int(numpyro.sample("branch", dist.Categorical(P), infer=BRANCHES))
    if branch == 0:
        numpyro.sample("x", dist.Normal(-3.0, 0.7), obs=x)
    elif branch == 1:
        wide = numpyro.sample("wide", dist.Normal(0.0, 2.0))
        numpyro.sample("x", dist.Normal(wide, 0.5), obs=x)
    elif branch == 2:
        first = numpyro.sample("first", dist.Normal(3.0, 1.0))
        second = numpyro.sample("second", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(first + second, 0.5), obs=x)
    else:
        numpyro.sample("x", dist.Normal(0.0, 6.0), obs=x)


def mean_field(x):
    """A network for the branch, and one for each branch that has latents."""
    x = x[None] / 3.0
    logits, one, two = (network(*sizes)(x) for sizes in (("branch", 1, 4), ("one", 1, 2), ("two", 1, 4)))
    branch = int(numpyro.sample("branch", dist.Categorical(logits=logits + jnp.log(P)), infer=BRANCHES))
    if branch == 1:
        numpyro.sample("wide", normal(one))
    elif branch == 2:
        numpyro.sample("first", normal(two[:2], 3.0))
        numpyro.sample("second", normal(two[2:]))


def by_hand(x):
    """Exact."""
    log_joint = jnp.log(P) + dist.Normal(MARGINALS[0], MARGINALS[1] ** 0.5).log_prob(x)
    branch = int(numpyro.sample("branch", dist.Categorical(logits=log_joint), infer=BRANCHES))
    if branch == 1:
        precision = 2.0**-2 + 0.5**-2
        numpyro.sample("wide", dist.Normal(0.5**-2 * x / precision, precision**-0.5))
    elif branch == 2:
        precision = 1.0 + 1.0 / (1.0 + 0.5**2)
        first = numpyro.sample("first", dist.Normal((3.0 + x / (1.0 + 0.5**2)) / precision, precision**-0.5))
        precision = 1.0 + 0.5**-2
        numpyro.sample("second", dist.Normal(0.5**-2 * (x - first) / precision, precision**-0.5))


def log_evidence(x):
    """Each branch is normal."""
    loc, variance = MARGINALS
    return logsumexp(np.log(P) + norm.logpdf(np.asarray(x, float)[:, None], loc, variance**0.5), axis=1)
