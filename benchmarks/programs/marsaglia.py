"""Marsaglia's polar method as a rejection loop without bound: a normal variable from the first point in the disc."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

NUM_DATA = 1
BRANCHES = {"branching": True}


def draw_data(rng_key):
    """A few numbers near to a normal variable of scale 1.5."""
    return 1.5 * jax.random.normal(rng_key, (NUM_DATA,))


def model(x):
    """A point of the square is accepted if it lies in the disc, but for one in a thousand."""
    scale = numpyro.param("scale", 1.0)
    number, accepted = 0, 0
    while not accepted:
        u = numpyro.sample(f"u_{number}", dist.Uniform(-1.0, 1.0))
        v = numpyro.sample(f"v_{number}", dist.Uniform(-1.0, 1.0))
        square = u * u + v * v
        accept = dist.Bernoulli(jnp.where(square < 1.0, 0.999, 0.001))
        accepted = numpyro.sample(f"accept_{number}", accept, infer=BRANCHES)
        number += 1
    square = jnp.clip(square, 1e-3, 0.999)
    numpyro.sample("x", dist.Normal(scale * u * jnp.sqrt(-2.0 * jnp.log(square) / square), 0.5), obs=x)


def guide(x):
    """Accepts by a logistic function of the distance and of the datum."""
    slope, offset, share = numpyro.param("slope", 2.0), numpyro.param("offset", 0.0), numpyro.param("share", 0.1)
    number, accepted = 0, 0
    while not accepted:
        u = numpyro.sample(f"u_{number}", dist.Uniform(-1.0, 1.0))
        v = numpyro.sample(f"v_{number}", dist.Uniform(-1.0, 1.0))
        logits = slope * (1.0 - u * u - v * v) + offset + share * x * u
        accepted = numpyro.sample(f"accept_{number}", dist.Bernoulli(logits=logits), infer=BRANCHES)
        number += 1


def pyro_programs(start):
    """The same in Pyro."""
    import pyro
    import torch
    from pyro import distributions as pyro_dist

    def pyro_model(x):
        scale = pyro.param("scale", start["scale"])
        number, accepted = 0, 0
        while not accepted:
            u = pyro.sample(f"u_{number}", pyro_dist.Uniform(-1.0, 1.0))
            v = pyro.sample(f"v_{number}", pyro_dist.Uniform(-1.0, 1.0))
            square = u * u + v * v
            accept = pyro_dist.Bernoulli(torch.where(square < 1.0, 0.999, 0.001))
            accepted = pyro.sample(f"accept_{number}", accept)
            number += 1
        square = square.clamp(1e-3, 0.999)
        loc = scale * u * torch.sqrt(-2.0 * torch.log(square) / square)
        pyro.sample("x", pyro_dist.Normal(loc, 0.5), obs=x)

    def pyro_guide(x):
        slope, offset, share = (pyro.param(name, start[name]) for name in ("slope", "offset", "share"))
        number, accepted = 0, 0
        while not accepted:
            u = pyro.sample(f"u_{number}", pyro_dist.Uniform(-1.0, 1.0))
            v = pyro.sample(f"v_{number}", pyro_dist.Uniform(-1.0, 1.0))
            logits = slope * (1.0 - u * u - v * v) + offset + share * x * u
            accepted = pyro.sample(f"accept_{number}", pyro_dist.Bernoulli(logits=logits))
            number += 1

    return pyro_model, pyro_guide
