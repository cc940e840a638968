"""Memory and time of a training step by the number of particles, in chunks and at once.

    python -m pip install -e ".[demo]"
    python benchmarks/memory.py

The demo's network of 250 binary latents on handwritten digits, pure wake. Each row runs in a process of its own and
prints:

    temporary   memory that the compiled step needs beside its arguments and results, MiB (`memory_analysis`)
    RSS         the most that the process has had in memory, MiB
    us/particle time of a step for each particle of the whole batch
"""

import argparse
import resource
import subprocess
import sys
import time

import jax
import numpy as np

import rws_jax
from rws_jax import __main__ as demo


def measure(num_particles, chunk_size, batch_size, num_rounds):
    """One row."""
    x = demo.load_digits()[0][:batch_size]
    rws = rws_jax.make_step(demo.model, demo.guide, num_particles=num_particles, chunk_size=chunk_size)
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
    microseconds = 1e6 * np.median(seconds) / num_particles
    print(f"{num_particles:>9}{chunk_size or 'all':>8}{temporary:>11.1f}{rss:>7.0f}{microseconds:>13.1f}")


def main():
    """Print the table, or one row of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--row", nargs=3, type=int, metavar=("PARTICLES", "CHUNK", "ROUNDS"), help="0 for one chunk")
    args = parser.parse_args()
    if args.row:
        num_particles, chunk_size, num_rounds = args.row
        measure(num_particles, chunk_size or None, args.batch_size, num_rounds)
        return
    print(f"{'particles':>9}{'chunk':>8}{'temporary':>11}{'RSS':>7}{'us/particle':>13}", flush=True)
    for row in [(100, 0, 20), (1000, 0, 5), (100, 100, 20), (1000, 100, 5), (10_000, 100, 3), (100_000, 100, 1)]:
        command = [sys.executable, __file__, "--batch-size", str(args.batch_size), "--row", *map(str, row)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
