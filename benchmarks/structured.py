"""One weight for a unit, or weights for its parts? Nested particles for plates, resampling in time; exact answers.

    python -m pip install -e ".[demo]"
    python benchmarks/structured.py
    python benchmarks/structured.py --tables two_level --sizes 100

Tables:

    two_level   a guide that is wrong on purpose, 900 particles of each datum: effective sample size of the global
                latent, and the gap from the exact log evidence to the bound in nats, means over sets of particles
    learned     the scale of a hierarchy of counts, learned with 100 particles of each datum in equal time
    series      a linear Gaussian series of 100 particles, with the prior and the optimal proposal as guides: effective
                sample size over the number of particles (of resampled ones the mean over steps), gap as above
    trained     model and guide of such series, 1,000 steps of them in all, trained with 50 particles; parameters beside
                those of the highest evidence, and the optimal proposal for these
    cost        a compiled step: milliseconds, their ratio to those of joint weights (both in turns, median of the
                ratios within each round), temporary memory in MiB and operations by XLA's analyses

Ways to weigh, by the number of particles of what is global, and of the local latents for each of these:

    joint         one weight for a particle of all latents
    common        `num_local_particles`, with the same random numbers of local particles for all global ones
    independent   the same with `local_numbers="independent"`
    resampled     `resample="systematic"`, in time
    every step    the same with `resample_below=1.0`
"""

import argparse
import statistics
import time

import jax
import numpy as np
import optax
from structures import linear_gaussian, lognormal, two_level

import rws_jax

WAYS_IN_TIME = {
    "joint": {},
    "resampled": {"resample": "systematic"},
    "every step": {"resample": "systematic", "resample_below": 1.0},
}


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
            ess, losses = evaluated(rws, state, x, args.sets)
            numbers = " x ".join(
                str(options[key]) for key in ("num_particles", "num_local_particles") if key in options
            )
            print(f"{way:<12}{num_data:>6}{numbers:>12}{cell(ess, 1):>12}{cell(exact + losses, 2):>16}", flush=True)


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
    _, losses = evaluated(rws, state, counts, args.sets)
    log_evidence, _, scale = lognormal.posterior(counts, float(params["tau"]))
    learned, ratio = float(params["tau"]), float(params["scale"]) / scale
    row = f"{learned:>8.3f}{tau:>8.3f}{(learned - tau) / error:>8.2f}{cell(log_evidence + losses, 2):>16}"
    print(f"{way:<12}{num_steps:>8}{row}{ratio:>15.2f}", flush=True)


def table_series(args):
    """Gaps and effective sample sizes of guides that are given."""
    print(f"{'series':<12}{'steps':>6}{'guide':>10}{'ESS / K':>18}{'gap':>18}", flush=True)
    for num_steps in args.lengths:
        x = linear_gaussian.draw(num_steps, 1)[0]
        exact = linear_gaussian.log_evidence(x, **linear_gaussian.TRUTH)
        for kind in (linear_gaussian.prior, linear_gaussian.optimum):
            guide = linear_gaussian.guide_from(**kind(**linear_gaussian.TRUTH))
            for way, options in WAYS_IN_TIME.items():
                options = {"num_particles": 100, "model_has_params": False, **options}
                rws = rws_jax.make_step(linear_gaussian.true_model, guide, **options)
                ess, losses = evaluated(rws, rws.init(jax.random.key(0), x), x, args.sets)
                row = f"{cell(ess / 100, 3):>18}{cell(exact + losses, 2):>18}"
                print(f"{way:<12}{num_steps:>6}{kind.__name__:>10}{row}", flush=True)


def table_trained(args):
    """Guide and model of a series, trained by the same number of steps; and what they could be."""
    names = "decay", "drift", "noise", "on z", "on x", "scale"
    print(
        f"{'trained':<12}{'steps':>6}{'ESS / K':>18}{'gap':>18}" + "".join(f"{name:>7}" for name in names), flush=True
    )
    for num_steps in args.trained_lengths:
        x = linear_gaussian.draw(num_steps, 1000 // num_steps)
        for way, options in WAYS_IN_TIME.items():
            rws, state, _ = steps_of(
                linear_gaussian, {"num_particles": 50, "data_axes": 0, **options}, (x,), args.steps
            )
            state, _ = rws_jax.fit(rws.step, state, args.steps, x, progress_bar=False)
            params = {name: np.asarray(value) for name, value in rws.get_params(state, x).items()}
            ess, losses = evaluated(rws, state, x, args.sets)
            exact = linear_gaussian.log_evidence(x, **{name: params[name] for name in linear_gaussian.TRUTH})
            gaps = exact.mean() + losses / len(x)
            numbers = *(params[name] for name in names[:3]), *params["weights"], params["scale"]
            cells = f"{cell(ess / 50, 3):>18}{cell(gaps, 2):>18}"
            print(f"{way:<12}{num_steps:>6}{cells}" + "".join(f"{number:>7.3f}" for number in numbers), flush=True)
        best = linear_gaussian.best(x)
        optimum = linear_gaussian.optimum(**best)
        numbers = *best.values(), *optimum["weights"], optimum["scale"]
        print(f"{'optimum':<12}{num_steps:>6}{'':>36}" + "".join(f"{number:>7.3f}" for number in numbers), flush=True)


def evaluated(rws, state, x, num_sets):
    """Effective sample sizes and losses of wake-theta, for sets of particles."""
    keys = jax.random.split(jax.random.key(1), num_sets)
    infos = [rws.evaluate(state._replace(rng_key=key), x) for key in keys]
    return (np.array([getattr(info, name) for info in infos]) for name in ("ess_mean", "wake_theta_loss"))


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
    print(f"{'cost':<16}{'':<12}{'particles':>10}{'ms':>10}{'ratio':>8}{'MiB':>8}{'Mflop':>8}", flush=True)
    in_time = {way: {"num_particles": 50, **options} for way, options in WAYS_IN_TIME.items()}
    costs(two_level, ways(900), 900, two_level.draw(1000), args.rounds)
    costs(lognormal, ways(100), 100, lognormal.draw(0), args.rounds)
    costs(linear_gaussian, in_time, 50, linear_gaussian.draw(100, 1)[0], args.rounds)


def costs(problem, rows, num_particles, x, num_rounds):
    """The rows of one problem, the first of which the others are compared to."""
    data, name = (x,), problem.__name__.split(".")[-1]
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
        print(f"{name:<16}{way:<12}{num_particles:>10}{ms:>10.2f}{ratio:>8.2f}{memory:>8.1f}{flops:>8.1f}", flush=True)


TABLES = {
    "two_level": table_two_level,
    "learned": table_learned,
    "series": table_series,
    "trained": table_trained,
    "cost": table_cost,
}


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000], help="numbers of data of two_level")
    parser.add_argument("--sets", type=int, default=100, help="of particles, that a mean is taken over")
    parser.add_argument("--data-seeds", type=int, nargs="+", default=[0, 1, 2], help="of the counts of learned")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, for each row of learned")
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 200], help="of series")
    parser.add_argument("--trained-lengths", type=int, nargs="+", default=[10, 100], help="of the series of trained")
    parser.add_argument("--steps", type=int, default=3000, help="of trained")
    parser.add_argument("--rounds", type=int, default=21, help="of cost")
    args = parser.parse_args()
    for name in args.tables:
        TABLES[name](args)


if __name__ == "__main__":
    main()
