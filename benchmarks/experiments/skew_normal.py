"""Wake-phi with few particles is biased: a normal guide for a skew-normal target, whose moments have closed forms.

The target has location 0.5, scale 2 and shape 5. Wake-phi minimises KL(p || q), whose optimum among normals has the
target's mean and standard deviation. With K particles its gradient is biased by O(1/K), and training ends elsewhere:
with two where the expected gradient is zero, which quadrature finds. The control variate does not move that point.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
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


def end_of_two_particles(num_points=401, num_rounds=50):
    """Mean and standard deviation of the normal guide for which the expected gradient of two particles is zero."""
    unit = np.linspace(-8.0, 8.0, num_points)
    mass = np.exp(-0.5 * unit**2)
    mass = np.outer(mass, mass) / mass.sum() ** 2
    mean, std = MEAN, STD
    for _ in range(num_rounds):  # of moment matching, whose fixed point this is
        z = mean + std * unit
        log_p = -0.5 * ((z - LOC) / SCALE) ** 2 + np.array(norm.logcdf(SHAPE * (z - LOC) / SCALE), float)
        log_w = log_p + 0.5 * unit**2
        weight = mass / (1.0 + np.exp(log_w[None, :] - log_w[:, None]))  # of the first particle, times its probability
        first, second = 2.0 * np.sum(weight * unit[:, None]), 2.0 * np.sum(weight * unit[:, None] ** 2)
        mean, std = mean + std * first, std * math.sqrt(second - first**2)
    return mean, std


def tables(runs):
    """By number of particles, beside the closed form."""
    middle = lambda values: sorted(values)[len(values) // 2]
    cells = lambda values: f"{middle(values):.3f} ({min(values):.3f} to {max(values):.3f})"
    rows = [f"| {run['num_particles']} | {cells(run['mean'])} | {cells(run['std'])} |" for run in runs]
    two = "| 2, by quadrature | {:.4f} | {:.4f} |".format(*end_of_two_particles())
    exact = f"| many, in closed form | {MEAN:.5f} | {STD:.5f} |"
    header = ["| K | mean (range of 5 seeds) | standard deviation |", "|---|---|---|"]
    return "\n".join([*header, rows[0], two, *rows[1:], exact])
