"""One of two processes that train together, each of which has half of the data: see `test_devices.py`."""

import sys

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import rws_jax


def train(x):
    """Parameters after 20 steps."""
    from tests import models

    adam = optax.adam(0.01)
    rws = rws_jax.make_step(
        models.binary_model, models.binary_guide, theta_optimizer=adam, phi_optimizer=adam, num_particles=5
    )
    state = rws.init(jax.random.key(0), x)
    for _ in range(20):
        state, _ = rws.step(state, x)
    return jax.device_get(state.plain[:2])


def main(process, address, path):
    """Train on this process's half, and save the parameters."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    half = np.split(np.load(path), 2)[int(process)]
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    theta, phi = train(jax.make_array_from_process_local_data(sharding, half))
    np.savez(f"{path}.{process}.npz", **theta, **phi)


if __name__ == "__main__":
    main(*sys.argv[1:])
