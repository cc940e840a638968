"""Memory and time of a training step by the number of particles, or of data, in chunks and at once.

    python -m pip install -e ".[demo]"
    python benchmarks/memory.py

The demo's network of 250 binary latents on handwritten digits, pure wake. Each row runs in a process of its own and
prints:

    temporary   memory that the compiled step needs beside its arguments and results, MiB (`memory_analysis`)
    RSS         the most that the process has had in memory, MiB
    us/particle time of a step for each particle of the whole batch, or of each datum

The second table has 50 particles of each datum, and data in chunks of which each has all its particles.
"""

import argparse
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from workloads.sbn import of_one

import rws_jax
from rws_jax import __main__ as demo

# Particles, or data, in all and in a chunk (0 for all of them), and rounds.
BY_PARTICLES = [(100, 0, 20), (1000, 0, 5), (100, 100, 20), (1000, 100, 5), (10_000, 100, 3), (100_000, 100, 1)]
BY_DATA = [(128, 0, 20), (1024, 0, 5), (128, 32, 20), (1024, 32, 5), (8192, 32, 3)]
ROW = ("PARTICLES", "CHUNK", "DATA", "DATA_CHUNK", "ROUNDS")


def measure(num_particles, chunk_size, num_data, data_chunk_size, num_rounds):
    """One row."""
    x = jnp.resize(demo.load_digits()[0], (num_data, 64))
    programs, options = (demo.model, demo.guide), {"chunk_size": chunk_size}
    if data_chunk_size is not None:
        programs, options = of_one, {"data_axes": 0, "data_chunk_size": data_chunk_size}
    rws = rws_jax.make_step(*programs, num_particles=num_particles, **options)
    state = rws.init(jax.random.key(0), x)
    step = rws.step.lower(state, x).compile()
    temporary = step.memory_analysis().temp_size_in_bytes / 2**20
    jax.block_until_ready(step(state, x))
    seconds = []
    for _ in range(num_rounds):
        start = time.perf_counter()
        jax.block_until_ready(step(state, x))
        seconds.append(time.perf_counter() - start)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    microseconds = 1e6 * np.median(seconds)
    return temporary, rss, microseconds


def main():
    """Print the tables, or one row of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--row", nargs=5, type=int, metavar=ROW, help="0 for one chunk")
    args = parser.parse_args()
    if args.row:
        num_particles, chunk_size, num_data, data_chunk_size, num_rounds = args.row
        found = measure(num_particles, chunk_size or None, num_data, data_chunk_size or None, num_rounds)
        print("{:>11.1f}{:>7.0f}".format(*found), f"{found[2] / num_particles:>12.1f}{found[2] / num_data:>10.1f}")
        return
    print(f"{'particles':>9}{'chunk':>8}{'temporary':>11}{'RSS':>7}{'us/particle':>13}{'us/datum':>10}", flush=True)
    for num, chunk_size, num_rounds in BY_PARTICLES:
        run(f"{num:>9}{chunk_size or 'all':>8}", num, chunk_size, args.batch_size, 0, num_rounds)
    print(f"\n{'data':>9}{'chunk':>8}{'temporary':>11}{'RSS':>7}{'us/particle':>13}{'us/datum':>10}", flush=True)
    for num, chunk_size, num_rounds in BY_DATA:
        run(f"{num:>9}{chunk_size or 'all':>8}", 50, 0, num, chunk_size, num_rounds)


def run(head, *row):
    """Print a row, measured in a process of its own."""
    print(head, end="", flush=True)
    subprocess.run([sys.executable, __file__, "--row", *map(str, row)], check=True)


if __name__ == "__main__":
    main()
