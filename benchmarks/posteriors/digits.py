"""A sigmoid belief network of 12 binary units for the 64 pixels of handwritten digits, trained on them exactly."""

import itertools
from functools import cache
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.nn import log_sigmoid, logsumexp
from numpyro.distributions import constraints

from posteriors import NUM_DATA
from posteriors.networks import network
from rws_jax import __main__ as demo

NUM_UNITS, NUM_PIXELS = 12, 64
SHAPES = {"x": np.zeros((NUM_DATA, NUM_PIXELS), np.float32)}
DATA_AXES = None
STATES = np.array(list(itertools.product([0.0, 1.0], repeat=NUM_UNITS)), np.float32)


def model(x):
    """A vector of bits, and pixels given that."""
    prior, weight, bias = parameters()
    with numpyro.plate("data", len(x)):
        h = numpyro.sample("h", dist.Bernoulli(logits=prior).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=h @ weight + bias[None]).to_event(1), obs=x)


def mean_field(x):
    """A probability for each unit."""
    logits = network("q", NUM_PIXELS, NUM_UNITS, hidden=128)(x - 0.5) + parameters()[0][None]
    with numpyro.plate("data", len(x)):
        numpyro.sample("h", dist.Bernoulli(logits=logits).to_event(1))


def by_hand(x):
    """Exact: all 4,096 states."""
    log_joint = log_table(parameters(), x)
    with numpyro.plate("data", len(x)):
        numpyro.sample("h", Enumerated(log_joint))


def log_evidence(x):
    """The sum over all states."""
    return np.asarray(logsumexp(log_table(parameters(), jnp.asarray(x)), axis=1))


def log_table(params, x):
    """Log p(h, x) for each datum and state."""
    prior, weight, bias = params
    logits = STATES @ weight + bias[None]
    log_prior = jnp.sum(STATES * prior + log_sigmoid(-prior), axis=1)
    return (log_prior + log_sigmoid(-logits).sum(axis=1))[None] + x @ logits.T


@cache
def parameters():
    """Prior logits, weights and biases after 500 steps up the exact log evidence of the demo's digits."""
    with jax.ensure_compile_time_eval():
        return tuple(np.asarray(param) for param in _trained())


def _trained():
    images = demo.load_digits()[0]
    keys = jax.random.split(jax.random.key(0), 501)
    means = jnp.clip(images.mean(axis=0), 0.02, 0.98)
    start = jnp.zeros(NUM_UNITS), jax.random.normal(keys[0], (NUM_UNITS, NUM_PIXELS)), jnp.log(means / (1 - means))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 500))
    loss = lambda params, x: -logsumexp(log_table(params, x), axis=1).mean()

    @jax.jit
    def step(carry, rng_key):
        params, state = carry
        grads = jax.grad(loss)(params, jax.random.choice(rng_key, images, (100,), replace=False))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), keys[1:])[0][0]


class Enumerated(dist.Distribution):
    """A vector of bits with a logit for each state."""

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.boolean, 1)
    pytree_data_fields = ("logits",)

    def __init__(self, logits, *, validate_args=None):
        self.logits = logits - logsumexp(logits, axis=-1, keepdims=True)
        super().__init__(logits.shape[:-1], (NUM_UNITS,), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        cumulative = jnp.cumsum(jnp.exp(self.logits), axis=-1)
        uniform = jax.random.uniform(key, sample_shape + self.batch_shape)[..., None] * cumulative[..., -1:]
        return jnp.asarray(STATES)[jnp.clip(jnp.sum(cumulative < uniform, axis=-1), 0, len(STATES) - 1)]

    def log_prob(self, value):
        index = (value @ 2.0 ** jnp.arange(NUM_UNITS)[::-1]).astype(int)
        logits = jnp.broadcast_to(self.logits, index.shape + self.logits.shape[-1:])
        return jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
