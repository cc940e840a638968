"""The square of a latent is observed, so that its posterior has two modes."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import logsumexp
from scipy.stats import norm

from posteriors import NUM_DATA
from posteriors.networks import network, normal

SHAPES = {"x": np.zeros(NUM_DATA, np.float32)}
DATA_AXES = None
SCALE = 0.3


def model(x):
    """One latent, one observation."""
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z**2, SCALE), obs=x)


def mean_field(x):
    """One normal distribution."""
    outputs = network("q", 1, 2)(x[:, None])
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", normal(outputs))


def by_hand(x):
    """Two normal distributions for each sign, in the frame of the root of x and of what the noise makes of it."""
    root = jnp.sqrt(jnp.maximum(x, 0.1))[:, None]
    outputs = network("q", 2, 6)(jnp.concatenate([jnp.arcsinh(x[:, None]), root], axis=-1))
    scale = SCALE / jnp.sqrt(4 * root**2 + 1)  # of the latent, as its square changes by 2 z
    loc = root + scale * (outputs[:, :2] + jnp.array([-0.5, 0.5])[None])
    scale, logits = scale * jnp.exp(outputs[:, 2:4]), outputs[:, 4:]
    both = lambda values, sign: jnp.concatenate([values, sign * values], axis=-1)
    parts = dist.Normal(both(loc, -1.0), both(scale, 1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=both(logits, 1.0)), parts))


def log_evidence(x):
    """By the trapezoidal rule on a fine grid."""
    z = np.linspace(-8.0, 8.0, 20_001)
    log_joint = norm.logpdf(z) + norm.logpdf(np.asarray(x, float)[:, None], z**2, SCALE)
    return logsumexp(log_joint, axis=1) + np.log(z[1] - z[0])
