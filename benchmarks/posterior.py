"""Importance sampling of trained programs, against a sampler written by hand in plain JAX; and its memory.

    python -m pip install -e ".[demo]" flax
    python benchmarks/posterior.py

The programs are those of `speed.py`. Both draw K particles of each datum and return log-weights and the log evidence,
`rws_jax.importance_sample` the draws as well. They take turns, in an order that changes from round to round. Prints

    ours, hand  milliseconds of a call, median over rounds
    ratio       throughput over that of the sampler by hand: the median of the ratios of each round (1: as fast)

and for 1,000 data and the decoder of the digits' network:

    temporary   memory that the compiled sampler needs beside arguments and results, MiB, for chunks of 50 particles
"""

import argparse
import importlib
import statistics
import time

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

import rws_jax
from rws_jax import __main__ as demo

WORKLOADS = ("mixture", "sbn", "vae", "state_space")


def samplers(name, num_particles):
    """Ours and that by hand, as functions of a key."""
    workload = importlib.import_module(f"workloads.{name}")
    x = workload.data()
    model, guide = (getattr(workload, role, None) or getattr(demo, role) for role in ("model", "guide"))
    rws = rws_jax.make_step(model, guide)
    state = rws.init(jax.random.key(0), x)
    params = rws.get_params(state, x)
    theta, phi = (
        {site: params[site] for site in part if site in params} for part in (list(state.theta), list(state.phi))
    )

    def ours(rng_key):
        weighted = rws_jax.importance_sample(rng_key, params, model, guide, x, num_particles=num_particles)
        return weighted.log_weights, weighted.log_evidence().value

    @jax.jit
    def by_hand(rng_key):
        log_p, log_q = workload.log_densities(theta, phi, rng_key, x, num_particles)
        log_w = log_p - log_q
        return log_w, logsumexp(log_w, axis=0) - jnp.log(num_particles)

    return ours, by_hand


def milliseconds(sampler, number):
    """Of one call."""
    start = time.perf_counter()
    jax.block_until_ready(sampler(jax.random.key(number)))
    return 1e3 * (time.perf_counter() - start)


def throughput(name, num_particles, num_rounds):
    """One row of the first table."""
    pair = samplers(name, num_particles)
    for sampler in pair:
        milliseconds(sampler, 0)
    rounds = []
    for number in range(num_rounds):
        first = number % 2
        times = {order: milliseconds(pair[order], number) for order in (first, 1 - first)}
        rounds.append((times[0], times[1]))
    ours, hand = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(hand / ours for ours, hand in rounds)
    print(f"{name:<12}{num_particles:>6}{ours:>9.2f}{hand:>9.2f}{ratio:>8.2f}", flush=True)


def memory(num_particles):
    """One row of the second table."""
    x = jax.ShapeDtypeStruct((1000, 64), jnp.float32)
    rws = rws_jax.make_step(demo.model, demo.guide)
    params = jax.eval_shape(lambda key, x: rws.get_params(rws.init(key, x), x), jax.random.key(0), x)

    def sample(rng_key, params, x):
        options = {"num_particles": num_particles, "chunk_size": 50}
        return rws_jax.importance_sample(rng_key, params, demo.model, demo.guide, x, **options)

    analysis = jax.jit(sample).lower(jax.random.key(0), params, x).compile().memory_analysis()
    print(f"{num_particles:>6}{analysis.temp_size_in_bytes / 2**20:>11.1f}", flush=True)


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rounds", type=int, default=21)
    parser.add_argument("--num-particles", type=int, nargs="+", default=[100])
    args = parser.parse_args()
    print(f"{'workload':<12}{'K':>6}{'ours':>9}{'hand':>9}{'ratio':>8}")
    for name in WORKLOADS:
        for num_particles in args.num_particles:
            throughput(name, num_particles, args.num_rounds)
    print(f"{'K':>6}{'temporary':>11}")
    for num_particles in (100, 1000, 2000):
        memory(num_particles)


if __name__ == "__main__":
    main()
