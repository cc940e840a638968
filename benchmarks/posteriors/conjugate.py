"""A positive latent, one in the unit interval and one in the simplex, each with data of its own: conjugate."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import special
from scipy.stats import betabinom, nbinom

from posteriors import NUM_DATA
from posteriors.networks import network

NUM_TRIALS, NUM_DRAWS = 10, 12
ALPHA = np.array([0.5, 1.0, 2.0, 3.0])
SHAPES = {
    "count": np.zeros(NUM_DATA, np.int32),
    "successes": np.zeros(NUM_DATA, np.int32),
    "draws": np.zeros((NUM_DATA, len(ALPHA)), np.int32),
}
DATA_AXES = None


def model(count, successes, draws):
    """Gamma and Poisson, beta and binomial, Dirichlet and multinomial."""
    with numpyro.plate("data", len(count)):
        rate = numpyro.sample("rate", dist.Gamma(1.5, 0.3))
        numpyro.sample("count", dist.Poisson(rate), obs=count)
        p = numpyro.sample("p", dist.Beta(0.8, 1.6))
        numpyro.sample("successes", dist.Binomial(NUM_TRIALS, p), obs=successes)
        shares = numpyro.sample("shares", dist.Dirichlet(ALPHA))
        numpyro.sample("draws", dist.Multinomial(NUM_DRAWS, shares), obs=draws)


def mean_field(count, successes, draws):
    """The same families, with parameters from one network."""
    x = jnp.concatenate([jnp.sqrt(count)[:, None], successes[:, None] / NUM_TRIALS, draws / NUM_DRAWS], axis=-1)
    outputs = jnp.exp(network("q", 2 + len(ALPHA), 4 + len(ALPHA))(x))
    with numpyro.plate("data", len(count)):
        numpyro.sample("rate", dist.Gamma(1.5 * outputs[:, 0], 0.3 * outputs[:, 1]))
        numpyro.sample("p", dist.Beta(0.8 * outputs[:, 2], 1.6 * outputs[:, 3]))
        numpyro.sample("shares", dist.Dirichlet(ALPHA[None] * outputs[:, 4:]))


def by_hand(count, successes, draws):
    """Exact."""
    with numpyro.plate("data", len(count)):
        numpyro.sample("rate", dist.Gamma(1.5 + count, 1.3))
        numpyro.sample("p", dist.Beta(0.8 + successes, 1.6 + NUM_TRIALS - successes))
        numpyro.sample("shares", dist.Dirichlet(ALPHA[None] + draws))


def log_evidence(count, successes, draws):
    """Negative binomial, beta-binomial and Dirichlet-multinomial."""
    log_counts = nbinom.logpmf(count, 1.5, 0.3 / 1.3) + betabinom.logpmf(successes, NUM_TRIALS, 0.8, 1.6)
    terms = special.gammaln(ALPHA + draws) - special.gammaln(ALPHA) - special.gammaln(draws + 1)
    total = special.gammaln(NUM_DRAWS + 1) + special.gammaln(ALPHA.sum()) - special.gammaln(ALPHA.sum() + NUM_DRAWS)
    return log_counts + total + terms.sum(axis=1)
