"""Handwritten digits by a sigmoid belief network of 12 hidden units, by number of particles; test NLL is exact."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from experiments._belief_networks import METHODS, log_evidence, programs, table, trained

COLUMNS = (2, 5, 10)
SETTINGS = [
    {"method": method, "num_particles": k, "num_seeds": 3, "num_steps": 3000, "learning_rate": 0.01, "batch": 100}
    for k in COLUMNS
    for method in METHODS
]


def run(method, num_particles, num_seeds, num_steps, learning_rate, batch):
    """Exact NLL of the 397 test images, nats per image, of each seed."""
    images = np.random.default_rng(0).permutation(load_digits().data > 7)
    train, test = jnp.asarray(images[:1400], float), jnp.asarray(images[1400:], float)
    model, guide = programs(12, 64, -1.0, -1.0)
    draw = lambda rng_key: jax.random.choice(rng_key, train, (batch,), replace=False)

    @jax.jit
    def nll(rng_key):
        params = trained(method, model, guide, draw, rng_key, num_particles, num_steps, learning_rate)
        return -log_evidence(params, test).mean()

    return {"nll": [float(nll(jax.random.key(seed))) for seed in range(num_seeds)]}


def tables(runs):
    """By method and number of particles."""
    return "\n".join(table(runs, COLUMNS))
