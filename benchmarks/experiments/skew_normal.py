"""Wake-phi with few particles is biased: a normal guide for a skew-normal target, whose moments have closed forms.

The target has location 0.5, scale 2 and shape 5. Wake-phi minimises KL(p || q), whose optimum among normals has the
target's mean and standard deviation. With K particles its gradient is biased by O(1/K), and training ends elsewhere.
"""

import math

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.stats import norm

import rws_jax

LOC, SCALE, SHAPE = 0.5, 2.0, 5.0
DELTA = SHAPE / math.sqrt(1.0 + SHAPE**2)
MEAN = LOC + SCALE * DELTA * math.sqrt(2.0 / math.pi)
STD = SCALE * math.sqrt(1.0 - 2.0 * DELTA**2 / math.pi)

SETTINGS = [{"num_particles": k, "num_seeds": 5, "num_steps": 20_000, "batch": 100} for k in (2, 10, 100)]


def model(x):
    """A unit for each datum, with the skew-normal density as a factor; data say nothing."""
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(LOC, SCALE))
        numpyro.factor("skew", math.log(2.0) + norm.logcdf(SHAPE * (z - LOC) / SCALE))


def guide(x):
    """A normal of learned mean and scale."""
    mean = numpyro.param("mean", 0.0)
    std = numpyro.param("std", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(mean, std))


def run(num_particles, num_seeds, num_steps, batch):
    """Mean and standard deviation of the guide, averaged over the last half of training."""
    adam = optax.adam(optax.exponential_decay(1e-2, num_steps, 1e-2))
    rws = rws_jax.make_step(model, guide, phi_optimizer=adam, num_particles=num_particles)
    x = jnp.zeros(batch)

    def train(rng_key):
        def body(state, _):
            state, _ = rws.step(state, x)
            params = rws.get_params(state, x)
            return state, (params["mean"], params["std"])

        _, curves = jax.lax.scan(body, rws.init(rng_key, x), length=num_steps)
        return [curve[num_steps // 2 :].mean() for curve in curves]

    means, stds = jax.jit(jax.vmap(train))(jax.vmap(jax.random.key)(jnp.arange(num_seeds)))
    return {"mean": means.tolist(), "std": stds.tolist()}


def tables(runs):
    """By number of particles, beside the closed form."""
    middle = lambda values: sorted(values)[len(values) // 2]
    rows = [f"| {run['num_particles']} | {middle(run['mean']):.3f} | {middle(run['std']):.3f} |" for run in runs]
    exact = f"| exact | {MEAN:.5f} | {STD:.5f} |"
    return "\n".join(["| K | mean | standard deviation |", "|---|---|---|", *rows, exact])
