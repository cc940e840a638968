"""A small attend-infer-repeat: none to two squares of a kind on a canvas, found by a network, one after the other."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

NUM_DATA = 16
BRANCHES = {"branching": True}
CANVAS, MOST, HIDDEN, DEPTH = 8, 2, 64, 3
GRID = jnp.arange(CANVAS) - (CANVAS - 1) / 2.0


def draw_data(rng_key):
    """Images of bumps at random places, with noise."""
    number_key, place_key, noise_key = jax.random.split(rng_key, 3)
    numbers = jax.random.randint(number_key, (NUM_DATA,), 0, MOST + 1)
    places = 2.0 * jax.random.normal(place_key, (NUM_DATA, MOST, 2))
    bumps = jax.vmap(jax.vmap(lambda where: bump(where, jnp.array([1.0, 0.0, 0.0]))))(places)
    images = jnp.sum(jnp.where((jnp.arange(MOST) < numbers[:, None])[..., None, None], bumps, 0.0), axis=1)
    return images + 0.3 * jax.random.normal(noise_key, images.shape)


@jax.jit
def bump(where, what):
    """A bump at some place, of some brightness and form."""
    row, column = (
        jnp.exp(-0.5 * (GRID - z) ** 2 / (1.0 + 0.2 * jnp.tanh(w)))
        for z, w in ((where[0], what[1]), (where[1], what[2]))
    )
    return what[0] * row[:, None] * column


def model(x):
    """How many objects, where each is, and what it is."""
    rate, noise = numpyro.param("rate", jnp.zeros(MOST + 1)), numpyro.param("noise", -1.0)
    number = int(numpyro.sample("number", dist.Categorical(logits=rate), infer=BRANCHES))
    image = jnp.zeros((CANVAS, CANVAS))
    for i in range(number):
        where = numpyro.sample(f"where_{i}", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
        what = numpyro.sample(f"what_{i}", dist.Normal(jnp.array([1.0, 0.0, 0.0]), 0.5).to_event(1))
        image = image + bump(where, what)
    numpyro.sample("x", dist.Normal(image, jnp.exp(noise)).to_event(2), obs=x)


def guide(x):
    """A network for the number, and one for each object, which is shown what is left of the image."""
    w = {name: numpyro.param(name, value) for name, value in initial_weights().items()}
    logits = perceptron(x, w["count_in"], w["count_out"])
    number = int(numpyro.sample("number", dist.Categorical(logits=logits), infer=BRANCHES))
    for i in range(number):
        loc, log_scale = jnp.split(perceptron(x, w["object_in"], w["object_out"]), 2)
        scale = jnp.exp(log_scale)
        where = numpyro.sample(f"where_{i}", dist.Normal(loc[:2], scale[:2]).to_event(1))
        what = numpyro.sample(f"what_{i}", dist.Normal(loc[2:], scale[2:]).to_event(1))
        x = x - bump(where, what)


@jax.jit
def perceptron(x, into, out):
    """One hidden layer."""
    return jnp.tanh(x.reshape(-1) @ into) @ out


@cache
def initial_weights():
    """Those of both networks of the guide."""
    rng = np.random.default_rng(0)
    matrix = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), float)
    pixels = CANVAS * CANVAS
    return {
        "count_in": matrix(pixels, HIDDEN),
        "count_out": 0.1 * matrix(HIDDEN, MOST + 1),
        "object_in": matrix(pixels, HIDDEN),
        "object_out": 0.1 * matrix(HIDDEN, 2 * (2 + DEPTH)),
    }


def pyro_programs(start):
    """The same in Pyro."""
    import pyro
    import torch
    from pyro import distributions as pyro_dist

    grid = torch.tensor(np.array(GRID))

    def pyro_bump(where, what):
        width = 1.0 + 0.2 * torch.tanh(what[1:])
        row, column = (torch.exp(-0.5 * (grid - where[i]) ** 2 / width[i]) for i in range(2))
        return what[0] * row[:, None] * column

    def pyro_model(x):
        rate, noise = pyro.param("rate", start["rate"]), pyro.param("noise", start["noise"])
        number = int(pyro.sample("number", pyro_dist.Categorical(logits=rate)))
        image = torch.zeros(CANVAS, CANVAS)
        for i in range(number):
            where = pyro.sample(f"where_{i}", pyro_dist.Normal(torch.zeros(2), 2.0).to_event(1))
            what = pyro.sample(f"what_{i}", pyro_dist.Normal(torch.tensor([1.0, 0.0, 0.0]), 0.5).to_event(1))
            image = image + pyro_bump(where, what)
        pyro.sample("x", pyro_dist.Normal(image, torch.exp(noise)).to_event(2), obs=x)

    def pyro_guide(x):
        w = {name: pyro.param(name, start[name]) for name in ("count_in", "count_out", "object_in", "object_out")}
        network = lambda x, into, out: torch.tanh(x.reshape(-1) @ into) @ out
        logits = network(x, w["count_in"], w["count_out"])
        number = int(pyro.sample("number", pyro_dist.Categorical(logits=logits)))
        for i in range(number):
            loc, log_scale = network(x, w["object_in"], w["object_out"]).split(2 + DEPTH)
            scale = torch.exp(log_scale)
            where = pyro.sample(f"where_{i}", pyro_dist.Normal(loc[:2], scale[:2]).to_event(1))
            what = pyro.sample(f"what_{i}", pyro_dist.Normal(loc[2:], scale[2:]).to_event(1))
            x = x - pyro_bump(where, what)

    return pyro_model, pyro_guide
