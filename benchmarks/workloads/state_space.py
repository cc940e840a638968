"""A switching autoregression of 4 regimes: 32 series of 25 steps, with NumPyro's `scan` in model and guide.

The guide is a recurrent network of 16 units that sees the series so far and its own last draw. The hand-written step
draws and scores in one `lax.scan`. RenyiELBO does not find a plate inside of NumPyro's `scan`, and coix would take time
for the particles there, so both get the loop over time unrolled; in Pyro it is one of Python in any case.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax.nn import log_softmax, one_hot
from jax.nn.initializers import glorot_uniform
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import scan

NUM_PARTICLES, LEARNING_RATE = (10,), 1e-3
NUM_REGIMES, NUM_UNITS, NUM_STEPS = 4, 16, 25


def data(size=32):
    """Series from the model at its initial parameters, shape ``(steps, series)``."""
    with numpyro.handlers.seed(rng_seed=0):
        return numpyro.handlers.trace(model).get_trace(jnp.zeros((NUM_STEPS, size)), observed=False)["x"]["value"]


def model(x, observed=True, loop=scan):
    """The regime of each series, and the next value given the last."""
    transition = numpyro.param("transition", 2.0 * jnp.eye(NUM_REGIMES))
    slope = numpyro.param("slope", jnp.array([-0.8, 0.0, 0.5, 0.9]))
    offset = numpyro.param("offset", jnp.array([0.0, 2.0, -2.0, 0.0]))
    log_scale = numpyro.param("log_scale", jnp.array([-1.0, -1.0, -1.0, 0.0]))

    def step(carry, x):
        z, last = carry
        with numpyro.plate("series", len(x)):
            z = numpyro.sample("z", dist.Categorical(logits=transition[z]))
            value = dist.Normal(slope[z] * last + offset[z], jnp.exp(log_scale[z]))
            last = numpyro.sample("x", value, obs=x if observed else None)
        return (z, last), None

    loop(step, (jnp.zeros(x.shape[1], int), jnp.zeros(x.shape[1])), x)


def guide(x, loop=scan):
    """The regime given the network's state."""
    weights = {name: numpyro.param(name, partial(initial, shape)) for name, shape in SHAPES.items()}

    def step(carry, x):
        z, hidden = carry
        hidden, logits = network(weights, z, hidden, x)
        with numpyro.plate("series", len(x)):
            z = numpyro.sample("z", dist.Categorical(logits=logits))
        return (z, hidden), None

    loop(step, (jnp.zeros(x.shape[1], int), jnp.zeros((x.shape[1], NUM_UNITS))), x)


MODEL_PARAMS = "transition", "slope", "offset", "log_scale"
SHAPES = {
    "from_hidden": (NUM_UNITS, NUM_UNITS),
    "from_regime": (NUM_REGIMES, NUM_UNITS),
    "from_value": (1, NUM_UNITS),
    "to_logits": (NUM_UNITS, NUM_REGIMES),
}


def initial(shape, rng_key):
    """Of a matrix of weights."""
    return glorot_uniform()(rng_key, shape)


def network(weights, z, hidden, x):
    """One step of the recurrent network: the new state, and the logits of regimes."""
    hidden = hidden @ weights["from_hidden"] + weights["from_regime"][z] + x[:, None] * weights["from_value"]
    hidden = jnp.tanh(hidden)
    return hidden, hidden @ weights["to_logits"]


def unrolled(step, carry, xs):
    """A loop in Python, with sites of their own for every step."""
    for index, x in enumerate(xs):
        with numpyro.handlers.scope(prefix=str(index), hide_types=["plate"]):
            carry, _ = step(carry, x)


without_scan = partial(model, loop=unrolled), partial(guide, loop=unrolled)


def log_densities(theta, phi, rng_key, x, num_particles):
    """By hand."""
    shape = num_particles, x.shape[1]

    def step(carry, x_and_key):
        z, last, hidden, log_p, log_q = carry
        x, rng_key = x_and_key
        hidden, logits = network(phi, z, hidden, x)
        drawn = jax.random.categorical(rng_key, logits)
        log_q = log_q + log_prob(logits, drawn)
        log_p = log_p + log_prob(theta["transition"][z], drawn)
        loc = theta["slope"][drawn] * last + theta["offset"][drawn]
        log_p = log_p + norm.logpdf(x, loc, jnp.exp(theta["log_scale"])[drawn])
        return (drawn, x, hidden, log_p, log_q), None

    zeros = jnp.zeros(shape)
    start = zeros.astype(int), jnp.zeros(shape[1]), jnp.zeros((*shape, NUM_UNITS)), zeros, zeros
    (*_, log_p, log_q), _ = lax.scan(step, start, (x, jax.random.split(rng_key, len(x))))
    return log_p, log_q


def log_prob(logits, z):
    """Log density of a category."""
    return jnp.sum(log_softmax(logits) * one_hot(z, NUM_REGIMES), axis=-1)


def in_pyro(theta, phi):
    """For Pyro."""
    import pyro
    import torch
    from pyro import distributions as dist

    start = {name: torch.tensor(np.array(value)) for name, value in (theta | phi).items()}

    def model(x):
        transition, slope, offset, log_scale = (pyro.param(name, start[name]) for name in MODEL_PARAMS)
        z, last = torch.zeros(x.shape[1], dtype=int), torch.zeros(x.shape[1])
        for index in range(len(x)):
            with pyro.plate(f"series_{index}", x.shape[1], dim=-1):
                z = pyro.sample(f"z_{index}", dist.Categorical(logits=transition[z]))
                value = dist.Normal(slope[z] * last + offset[z], log_scale[z].exp())
                last = pyro.sample(f"x_{index}", value, obs=x[index])

    def guide(x):
        weights = {name: pyro.param(name, start[name]) for name in phi}
        z, hidden = torch.zeros(x.shape[1], dtype=int), torch.zeros(x.shape[1], NUM_UNITS)
        for index in range(len(x)):
            hidden = hidden @ weights["from_hidden"] + weights["from_regime"][z]
            hidden = torch.tanh(hidden + x[index][:, None] * weights["from_value"])
            with pyro.plate(f"series_{index}", x.shape[1], dim=-1):
                z = pyro.sample(f"z_{index}", dist.Categorical(logits=hidden @ weights["to_logits"]))

    return model, guide
