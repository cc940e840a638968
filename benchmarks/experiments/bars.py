"""Bars of 5x5 pixels by a sigmoid belief network of 15 hidden units. Everything is exact: entropy and expected NLL.

Each of 5 rows and 5 columns is on with probability 1/10, and pixels are on where a bar is. Hidden units start
rare, as bars are.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments._belief_networks import METHODS, log_evidence, programs, table, trained

SIZE = 5
COLUMNS = 2, 5, 10
SETTINGS = [
    {"method": method, "num_particles": k, "num_seeds": 3, "num_steps": 3000, "learning_rate": 0.03, "batch": 100}
    for k in COLUMNS
    for method in METHODS
]


def painted(bars):
    """Images of rows and columns, shape ``(..., 10)`` to ``(..., 25)``."""
    rows, columns = bars[..., :SIZE, None], bars[..., None, SIZE:]
    return jnp.maximum(rows, columns).reshape(*bars.shape[:-1], SIZE**2).astype(float)


def distribution():
    """All distinct images, and their probabilities."""
    bars = np.arange(2 ** (2 * SIZE))[:, None] >> np.arange(2 * SIZE) & 1
    images, which = np.unique(painted(jnp.array(bars)), axis=0, return_inverse=True)
    return images, np.bincount(which.ravel(), np.prod(np.where(bars, 0.1, 0.9), axis=1))


def entropy():
    """Entropy of the images in nats: no model has a lower expected NLL."""
    _, probs = distribution()
    return float(-(probs * np.log(probs)).sum())


def run(method, num_particles, num_seeds, num_steps, learning_rate, batch):
    """Exact expected NLL in nats of each seed."""
    images, probs = map(jnp.asarray, distribution())
    model, guide = programs(15, SIZE**2, -2.0, -3.5)
    draw = lambda rng_key: painted(jax.random.bernoulli(rng_key, 0.1, (batch, 2 * SIZE)))

    @jax.jit
    def nll(rng_key):
        params = trained(method, model, guide, draw, rng_key, num_particles, num_steps, learning_rate)
        return -probs @ log_evidence(params, images)

    return {"nll": [float(nll(jax.random.key(seed))) for seed in range(num_seeds)]}


def tables(runs):
    """By method and number of particles, beside the entropy."""
    least = ["entropy"] + [f"{entropy():.5f}"] * len(COLUMNS)
    return "\n".join([*table(runs, COLUMNS), f"| {' | '.join(least)} |"])
