"""One to three clusters, whose number is not known, of four observations. Python loops over the clusters."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.nn import logsumexp, one_hot
from scipy import special
from scipy.stats import multivariate_normal

from posteriors import NUM_DATA
from posteriors.networks import BRANCHES, network, normal

NUM_OBSERVATIONS = 4
SHAPES = {"x": np.zeros((NUM_DATA, NUM_OBSERVATIONS), np.float32)}
DATA_AXES = 0
P, SPREAD, SCALE = np.array([0.4, 0.35, 0.25]), 3.0, 0.5
ASSIGNMENTS = [np.array(list(itertools.product(range(n), repeat=NUM_OBSERVATIONS))) for n in (1, 2, 3)]


def model(x):
    """Every observation is from any cluster, with equal chances."""
    num = 1 + int(numpyro.sample("num", dist.Categorical(P), infer=BRANCHES))
    means = jnp.stack([numpyro.sample(f"mean_{i}", dist.Normal(0.0, SPREAD)) for i in range(num)])
    with numpyro.plate("observations", len(x)):
        mixture = dist.MixtureSameFamily(dist.Categorical(jnp.full(num, 1 / num)), dist.Normal(means, SCALE))
        numpyro.sample("x", mixture, obs=x)


def mean_field(x):
    """A network for the number, and one for each number of clusters."""
    x = jnp.sort(x) / SPREAD
    logits = network("num", NUM_OBSERVATIONS, 3)(x) + jnp.log(P)
    outputs = [network(f"means_{n}", NUM_OBSERVATIONS, 2 * n)(x) for n in (1, 2, 3)]
    num = 1 + int(numpyro.sample("num", dist.Categorical(logits=logits), infer=BRANCHES))
    for i in range(num):
        numpyro.sample(f"mean_{i}", normal(outputs[num - 1][2 * i : 2 * i + 2], 0.0, SPREAD))


def by_hand(x):
    """Exact: a mixture over all assignments of observations to clusters, of which each mean that is drawn tells."""
    tables = [table(x, assignments) for assignments in ASSIGNMENTS]
    logits = jnp.stack([logsumexp(log_joint) for log_joint, _, _ in tables]) + jnp.log(P)
    num = 1 + int(numpyro.sample("num", dist.Categorical(logits=logits), infer=BRANCHES))
    log_joint, locs, scales = tables[num - 1]
    for i in range(num):
        parts = dist.Normal(locs[:, i], scales[:, i])
        mean = numpyro.sample(f"mean_{i}", dist.MixtureSameFamily(dist.Categorical(logits=log_joint), parts))
        log_joint = log_joint + parts.log_prob(mean)


def table(x, assignments):
    """For each assignment: log p(assignment, x) up to a constant, and posterior means and scales of the clusters."""
    members = one_hot(assignments, assignments.max() + 1)
    precision = SPREAD**-2 + members.sum(axis=1) / SCALE**2
    locs = jnp.einsum("ajc,j->ac", members, x) / SCALE**2 / precision
    log_joint = 0.5 * (locs**2 * precision - jnp.log(precision * SPREAD**2)).sum(axis=1) - jnp.log(len(assignments))
    return log_joint, locs, precision**-0.5


def log_evidence(x):
    """The sum over numbers of clusters and assignments; given both, the data are normal."""
    terms = []
    for p, assignments in zip(P, ASSIGNMENTS, strict=True):
        for assignment in assignments:
            covariance = SPREAD**2 * (assignment[:, None] == assignment) + SCALE**2 * np.eye(NUM_OBSERVATIONS)
            log_density = multivariate_normal(cov=covariance).logpdf(np.asarray(x, float))
            terms.append(np.log(p / len(assignments)) + log_density)
    return special.logsumexp(terms, axis=0)
