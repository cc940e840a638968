"""One weight for a unit, or weights for its parts? Nested particles for plates, resampling in time; exact answers.

    python -m pip install -e ".[demo]"
    python benchmarks/structured.py
    python benchmarks/structured.py --tables two_level --sizes 100

Tables:

    two_level   a guide that is wrong on purpose, 900 particles of each datum: effective sample size of the global
                latent, and the gap from the exact log evidence to the bound in nats, means over sets of particles
    learned     the scale of a hierarchy of counts, learned with 100 particles of each datum in equal time
    cost        a compiled step: milliseconds, their ratio to those of joint weights (both in turns, median of the
                ratios within each round), temporary memory in MiB and operations by XLA's analyses

Ways to weigh, by the number of particles of what is global, and of the local latents for each of these:

    joint         one weight for a particle of all latents
    common        `num_local_particles`, with the same random numbers of local particles for all global ones
    independent   the same with `local_numbers="independent"`
"""

import argparse
import statistics
import time

import jax
import numpy as np
import optax
from structures import lognormal, two_level

import rws_jax


def ways(num_particles):
    """Options of each way, with so many evaluations for each datum."""
    side = round(num_particles**0.5)
    nested = {"num_particles": side, "num_local_particles": side}
    return {
        "joint": {"num_particles": num_particles},
        "common": {**nested, "local_numbers": "common"},
        "independent": {**nested, "local_numbers": "independent"},
    }


def table_two_level(args):
    """Effective sample sizes and gaps of a wrong guide."""
    print(f"{'two_level':<12}{'data':>6}{'particles':>12}{'ESS':>12}{'gap':>16}", flush=True)
    for num_data in args.sizes:
        x = two_level.draw(num_data)
        exact = two_level.log_evidence(x)
        for way, options in ways(900).items():
            rws = rws_jax.make_step(two_level.model, two_level.guide, model_has_params=False, **options)
            state = rws.init(jax.random.key(0), x)
            keys = jax.random.split(jax.random.key(1), args.sets)
            infos = [rws.evaluate(state._replace(rng_key=key), x) for key in keys]
            ess = np.array([info.ess_mean for info in infos])
            gaps = exact + np.array([info.wake_theta_loss for info in infos])
            numbers = " x ".join(str(options[key]) for key in ("num_particles", "num_local_particles") if key in options)
            print(f"{way:<12}{num_data:>6}{numbers:>12}{cell(ess, 1):>12}{cell(gaps, 2):>16}", flush=True)


def cell(values, digits):
    """The mean and its standard error."""
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}"


def table_learned(args):
    """The scale of a hierarchy, in equal time."""
    print(f"{'learned':<12}{'steps':>8}{'tau':>8}{'best':>8}{'errors':>8}{'gap':>16}{'scale / exact':>15}", flush=True)
    for seed in args.data_seeds:
        counts = lognormal.draw(seed)
        tau, error = lognormal.best_tau(counts)
        for way, options in ways(100).items():
            train(way, options, counts, tau, error, args)


def train(way, options, counts, tau, error, args):
    """One row: as many steps as fit into the time, by Adam with a cosine decay."""
    seconds_of_step = time_of(steps_of(lognormal, options, (counts,), 1000), 200)
    num_steps = int(args.seconds / seconds_of_step)
    rws, state, _ = steps_of(lognormal, options, (counts,), num_steps)
    state, _ = rws_jax.fit(rws.step, state, num_steps, counts, progress_bar=False)
    params = rws.get_params(state, counts)
    infos = [rws.evaluate(state._replace(rng_key=key), counts) for key in jax.random.split(jax.random.key(1), args.sets)]
    log_evidence, _, scale = lognormal.posterior(counts, float(params["tau"]))
    gaps = log_evidence + np.array([info.wake_theta_loss for info in infos])
    learned, ratio = float(params["tau"]), float(params["scale"]) / scale
    errors = (learned - tau) / error
    print(f"{way:<12}{num_steps:>8}{learned:>8.3f}{tau:>8.3f}{errors:>8.2f}{cell(gaps, 2):>16}{ratio:>15.2f}", flush=True)


def steps_of(problem, options, data, num_steps, learning_rate=2e-2):
    """Functions of training, an initial state, and the data."""
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    rws = rws_jax.make_step(problem.model, problem.guide, theta_optimizer=adam, phi_optimizer=adam, **options)
    return rws, rws.init(jax.random.key(0), *data), data


def time_of(steps, num):
    """Seconds of a step, median."""
    rws, state, data = steps
    seconds = []
    for _ in range(num):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(rws.step(state, *data))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def table_cost(args):
    """Time, memory and operations of a compiled step."""
    print(f"{'cost':<12}{'':<12}{'particles':>10}{'ms':>10}{'ratio':>8}{'MiB':>8}{'Mflop':>8}", flush=True)
    data = {two_level: (two_level.draw(1000),), lognormal: (lognormal.draw(0),)}
    for problem, num_particles in ((two_level, 900), (lognormal, 100)):
        rows = ways(num_particles)
        costs(problem.__name__.split(".")[-1], problem, rows, num_particles, data[problem], args.rounds)


def costs(name, problem, rows, num_particles, data, num_rounds):
    """The rows of one problem, the first of which the others are compared to."""
    compiled = {}
    for way, options in rows.items():
        rws, state, _ = steps_of(problem, options, data, 1000)
        compiled[way] = rws.step.lower(state, *data).compile(), state
    seconds = {way: [] for way in rows}
    for _ in range(num_rounds):
        for way, (step, state) in compiled.items():
            begin = time.perf_counter()
            jax.block_until_ready(step(state, *data))
            seconds[way].append(time.perf_counter() - begin)
    first = next(iter(rows))
    for way, (step, _) in compiled.items():
        ms = 1e3 * statistics.median(seconds[way])
        ratio = statistics.median(own / other for own, other in zip(seconds[way], seconds[first], strict=True))
        memory = step.memory_analysis().temp_size_in_bytes / 2**20
        flops = step.cost_analysis()["flops"] / 1e6
        print(f"{name:<12}{way:<12}{num_particles:>10}{ms:>10.2f}{ratio:>8.2f}{memory:>8.1f}{flops:>8.1f}", flush=True)


TABLES = {"two_level": table_two_level, "learned": table_learned, "cost": table_cost}


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000], help="numbers of data of two_level")
    parser.add_argument("--sets", type=int, default=100, help="of particles, that a mean is taken over")
    parser.add_argument("--data-seeds", type=int, nargs="+", default=[0, 1, 2], help="of the counts of learned")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, for each row of learned")
    parser.add_argument("--rounds", type=int, default=21, help="of cost")
    args = parser.parse_args()
    for name in args.tables:
        TABLES[name](args)


if __name__ == "__main__":
    main()
