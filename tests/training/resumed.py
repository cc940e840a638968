"""A process that goes on with what another one has saved: see `test_resume.py`."""

import pickle
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

import rws_jax
from tests import models


def make():
    return rws_jax.make_step(
        models.binary_model,
        models.binary_guide,
        theta_optimizer=optax.adam(optax.exponential_decay(0.1, 2, 0.5)),
        phi_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.rmsprop(0.05, momentum=0.9)),
        insomnia=optax.linear_schedule(1.0, 0.0, 10),
    )


def train(rws, state):
    return rws_jax.fit(rws.step, state, 4, models.BINARY_DATA, progress_bar=False)


def without_key(state):
    return state._replace(rng_key=jax.random.key_data(state.rng_key))


def main(path):
    """Go on from each file, and save all that comes of it."""
    rws = make()
    like = rws.init(jax.random.key(1), models.BINARY_DATA)
    with ocp.StandardCheckpointer() as checkpointer:
        states = {"orbax": checkpointer.restore(path / "orbax", like)}
    states["pickle"] = pickle.loads((path / "pickle").read_bytes())
    with np.load(path / "leaves.npz") as leaves:
        state = jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in leaves])
    states["leaves"] = state._replace(rng_key=jax.random.wrap_key_data(state.rng_key))
    for how, state in states.items():
        state, infos = train(rws, state)
        np.savez(path / f"{how}_after.npz", *jax.tree.leaves((without_key(state), infos)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
