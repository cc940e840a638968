"""The demo's sigmoid belief network, 64 pixels <- 200 <- 50 binary units, on 128 handwritten digits."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.nn import log_sigmoid, sigmoid
from jax.nn.initializers import glorot_uniform

from rws_jax import __main__ as demo

NUM_PARTICLES, LEARNING_RATE = (10, 50), 1e-3

model, guide = demo.model, demo.guide


def model_of_one(image):
    """The same of one datum, without its plate."""
    h2 = numpyro.sample("h2", dist.Bernoulli(logits=numpyro.param("prior", jnp.zeros(50))).to_event(1))
    h1 = numpyro.sample("h1", dist.Bernoulli(logits=affine("p1", h2, 200)).to_event(1))
    numpyro.sample("images", dist.Bernoulli(logits=affine("p0", h1, 64)).to_event(1), obs=image)


def guide_of_one(image):
    """Likewise."""
    h1 = numpyro.sample("h1", dist.Bernoulli(logits=affine("q1", image, 200)).to_event(1))
    numpyro.sample("h2", dist.Bernoulli(logits=affine("q2", h1, 50)).to_event(1))


def affine(name, x, size):
    """One layer, of a vector."""
    weight = numpyro.param(f"{name}_weight", lambda key: glorot_uniform()(key, (x.shape[-1], size)))
    return x.astype(float) @ weight + numpyro.param(f"{name}_bias", jnp.zeros(size))


of_one = model_of_one, guide_of_one


def data(size=128):
    """A batch of digits."""
    return demo.load_digits()[0][:size]


def log_densities(theta, phi, rng_key, x, num_particles):
    """By hand."""
    affine = lambda params, name, x: x @ params[f"{name}_weight"] + params[f"{name}_bias"]
    h1_key, h2_key = jax.random.split(rng_key)
    h1_logits = affine(phi, "q1", x)
    h1 = draw(h1_key, h1_logits, (num_particles, *h1_logits.shape))
    h2_logits = affine(phi, "q2", h1)
    h2 = draw(h2_key, h2_logits, h2_logits.shape)
    log_q = log_prob(h1_logits, h1) + log_prob(h2_logits, h2)
    log_p = log_prob(theta["prior"], h2) + log_prob(affine(theta, "p1", h2), h1) + log_prob(affine(theta, "p0", h1), x)
    return log_p, log_q


def draw(rng_key, logits, shape):
    """Independent bits, constants to the gradient."""
    return jax.random.bernoulli(rng_key, sigmoid(jax.lax.stop_gradient(logits)), shape).astype(float)


def log_prob(logits, z):
    """Log density of a vector of bits."""
    return jnp.sum(z * logits + log_sigmoid(-logits), axis=-1)


def in_pyro(theta, phi):
    """For Pyro."""
    import pyro
    import torch
    from pyro import distributions as dist

    start = {name: torch.tensor(np.array(value)) for name, value in (theta | phi).items()}

    def affine(name, x):
        weight, bias = (f"{name}_{kind}" for kind in ("weight", "bias"))
        return x @ pyro.param(weight, start[weight]) + pyro.param(bias, start[bias])

    def model(images):
        prior = pyro.param("prior", start["prior"])
        with pyro.plate("data", len(images)):
            h2 = pyro.sample("h2", dist.Bernoulli(logits=prior).to_event(1))
            h1 = pyro.sample("h1", dist.Bernoulli(logits=affine("p1", h2)).to_event(1))
            pyro.sample("images", dist.Bernoulli(logits=affine("p0", h1)).to_event(1), obs=images)

    def guide(images):
        with pyro.plate("data", len(images)):
            h1 = pyro.sample("h1", dist.Bernoulli(logits=affine("q1", images)).to_event(1))
            pyro.sample("h2", dist.Bernoulli(logits=affine("q2", h1)).to_event(1))

    return model, guide
