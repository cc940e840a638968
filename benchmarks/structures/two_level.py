"""A mean of many means, all Gaussian, and a guide that is wrong on purpose."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

# How far off the guide is, in standard deviations of the exact posterior, and how many times as wide.
GLOBAL, LOCAL = (0.5, 1.3), (0.2, 1.35)


def model(x):
    """One global latent, a local one for each datum."""
    g = numpyro.sample("g", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(g, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    """Mean field: the exact marginals of the posterior, but for the parameters `GLOBAL` and `LOCAL`."""
    shift, width = numpyro.param("global", jnp.array(GLOBAL))
    local_shift, local_width = numpyro.param("local", jnp.array(LOCAL))
    variance = 1 / (1 + len(x) / 2)
    mean = variance * x.sum() / 2
    numpyro.sample("g", dist.Normal(mean + shift * variance**0.5, width * variance**0.5))
    local_scale = (1 / 2 + variance / 4) ** 0.5
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal((mean + x) / 2 + local_shift * local_scale, local_width * local_scale))


def draw(num_data):
    """Data of the model, with a mean of one, by a fixed seed."""
    return 1.0 + 2.0**0.5 * jax.random.normal(jax.random.key(0), (num_data,))


def log_evidence(x):
    """In closed form: the data are normal, with variances of three and covariances of one."""
    x = np.asarray(x, float)
    n = len(x)
    quadratic = (x @ x - x.sum() ** 2 / (n + 2)) / 2
    return -(n * np.log(2 * np.pi) + (n - 1) * np.log(2) + np.log(n + 2) + quadratic) / 2
