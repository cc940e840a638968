"""A mixture of 20 components, as in `experiments/mixture.py`, drawn by NumPyro: 100 data, networks of 16 units."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from experiments import mixture
from jax.scipy.stats import norm

NUM_PARTICLES, LEARNING_RATE = (2, 20), 1e-3


def model(x):
    """The component of each datum, and the datum."""
    logits = numpyro.param("logits", mixture.STARTS["near"]) / 2.0
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(logits=logits))
        numpyro.sample("x", dist.Normal(10.0 * z, 5.0), obs=x)


def guide(x):
    """A network of two layers that tells the component from the datum."""
    hidden = jnp.tanh(mixture.linear("q1", x[:, None], 16))
    hidden = jnp.tanh(mixture.linear("q2", hidden, 16))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Categorical(logits=mixture.linear("q3", hidden, mixture.NUM_BRANCHES)))


def data(size=100):
    """A batch from the truth."""
    return mixture.draw_data(jax.random.key(0))[:size]


def log_densities(theta, phi, rng_key, x, num_particles):
    """By hand."""
    hidden = jnp.tanh(x[:, None] @ phi["q1_weight"] + phi["q1_bias"])
    hidden = jnp.tanh(hidden @ phi["q2_weight"] + phi["q2_bias"])
    log_q = jax.nn.log_softmax(hidden @ phi["q3_weight"] + phi["q3_bias"])
    z = jax.random.categorical(rng_key, log_q, shape=(num_particles, len(x)))
    log_p = jax.nn.log_softmax(theta["logits"] / 2.0)[z] + norm.logpdf(x, 10.0 * z, 5.0)
    return log_p, log_q[jnp.arange(len(x)), z]


def in_pyro(theta, phi):
    """For Pyro."""
    import pyro
    import torch
    from pyro import distributions as dist

    start = {name: torch.tensor(np.array(value)) for name, value in (theta | phi).items()}

    def linear(name, x):
        weight, bias = (f"{name}_{kind}" for kind in ("weight", "bias"))
        return x @ pyro.param(weight, start[weight]) + pyro.param(bias, start[bias])

    def model(x):
        logits = pyro.param("logits", start["logits"]) / 2.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(10.0 * z, 5.0), obs=x)

    def guide(x):
        hidden = torch.tanh(linear("q1", x[:, None]))
        hidden = torch.tanh(linear("q2", hidden))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=linear("q3", hidden)))

    return model, guide
