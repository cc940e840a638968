"""How near to the posterior do guides come that are trained in their sleep? On models whose log evidence is known.

    python -m pip install -e ".[demo]"
    python benchmarks/guides.py
    python benchmarks/guides.py --classes noisy_or square --steps 1500
    python benchmarks/guides.py --check

Models are those of `posteriors/`. Each guide learns from the model's dreams alone, for two minutes at most, and then
proposes 100 particles for each of 64 data that the model has drawn from a fixed seed. Prints, by class and guide,

    gap      log p(x) less the expected bound of 100 particles, in nats, mean over data
    ESS      effective sample size of 100 particles over 100, mean over data; in brackets that of the worst datum
    seconds  of training, compilation with it; none where a guide has no parameters

in expectation over 20 sets of 100 particles, and over 5 where Python branches. Guides:

    prior       the model itself, its observed sites hidden
    mean field  each latent by itself, from a small network of the data
    by hand     what an expert writes: exact where the posterior is known, else a network of the right dependence
    compiled    `rws_jax.compile_guide(model)`, as it comes

The second form says which classes, and how many steps of training. The third holds the exact evidences against
importance sampling from the prior, by 100,000 particles or more, for some data: errors are in standard errors.
"""

import argparse
import importlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax

import rws_jax

CLASSES = (
    *("gaussian", "noisy_or", "square", "conjugate", "hierarchical", "mixture", "sensor", "clusters", "geometric"),
    *("state_space", "volatility", "digits"),
)
# Where Python branches, a step takes longer.
STEPS = {"mixture": 1500, "sensor": 1500, "clusters": 1500, "geometric": 1000}
NUM_PARTICLES, MAX_SECONDS = 100, 120.0


def prior(problem):
    """The model as a guide."""
    return numpyro.handlers.block(problem.model, hide_fn=lambda site: site.get("is_observed", False))


GUIDES = {
    "prior": prior,
    "mean field": lambda problem: problem.mean_field,
    "by hand": lambda problem: problem.by_hand,
    "compiled": lambda problem: rws_jax.compile_guide(problem.model),
}


def draw(problem):
    """Data of the model, by a fixed seed."""

    def one(rng_key, *args):
        model = numpyro.handlers.seed(numpyro.handlers.uncondition(problem.model), rng_key)
        trace = numpyro.handlers.trace(model).get_trace(*args)
        return [np.asarray(trace[name]["value"], zeros.dtype) for name, zeros in problem.SHAPES.items()]

    rng_key, zeros = jax.random.key(123), list(problem.SHAPES.values())
    if problem.DATA_AXES is None:
        return tuple(one(rng_key, *zeros))
    keys = jax.random.split(rng_key, len(zeros[0]))
    data = [one(key, *row) for key, *row in zip(keys, *zeros, strict=True)]
    return tuple(np.stack(values) for values in zip(*data, strict=True))


def train(problem, guide, data, num_steps, num_dreams, learning_rate):
    """Parameters, and the seconds that they took."""
    begin = time.perf_counter()
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))
    options = {"insomnia": 0.0, "num_sleep_particles": num_dreams, "model_has_params": False}
    rws = rws_jax.make_step(problem.model, guide, phi_optimizer=optimizer, data_axes=problem.DATA_AXES, **options)
    state = rws.init(jax.random.key(0), *data)
    if not state.phi:
        return {}, None
    late = lambda state, infos: time.perf_counter() - begin > MAX_SECONDS
    state, infos = rws_jax.fit(rws.step, state, num_steps, *data, callback=late, progress_bar=False)
    if len(infos.finite) < num_steps:
        print(f"  stopped after {len(infos.finite)} steps")
    return rws.get_params(state, *data), time.perf_counter() - begin


def log_weights(problem, guide, params, data, rng_key, num_particles):
    """Of particles from a guide, shape ``(particles, data)``."""
    options = {"num_particles": num_particles, "data_axes": problem.DATA_AXES}
    weighted = rws_jax.importance_sample(rng_key, params, problem.model, guide, *data, **options)
    return np.asarray(weighted.log_weights, float)


def bound_and_ess(log_w):
    """The bound of each set and datum, and the effective sample size over that of the set."""
    sets = log_w.reshape(-1, NUM_PARTICLES, log_w.shape[-1])
    log_max = sets.max(axis=1, keepdims=True)
    w = np.exp(sets - np.where(np.isfinite(log_max), log_max, 0.0))
    total = w.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = np.log(total / NUM_PARTICLES) + log_max[:, 0]
        return bound, np.nan_to_num(total**2 / (w**2).sum(axis=1) / NUM_PARTICLES)


def row(name, guides, args):
    """One row of the table, a line for each guide before it."""
    problem = importlib.import_module(f"posteriors.{name}")
    data = draw(problem)
    exact, cells = problem.log_evidence(*data), []
    for guide_name in guides:
        guide = GUIDES[guide_name](problem)
        params, seconds = {}, None
        if guide_name != "prior":
            num_steps = args.steps or STEPS.get(name, 3000)
            params, seconds = train(problem, guide, data, num_steps, args.dreams, args.learning_rate)
        num_particles = NUM_PARTICLES * (5 if name in STEPS else 20)
        log_w = log_weights(problem, guide, params, data, jax.random.key(1), num_particles)
        bound, ess = bound_and_ess(log_w)
        gap, ess = (exact - bound).mean(), ess.mean(axis=0)
        trained = "" if seconds is None else f", {seconds:.0f}"
        cells.append(f"{round(gap, 3) + 0.0:.3f}, {ess.mean():.2f} ({ess.min():.2f}){trained}")
        print(f"  {name:<14}{guide_name:<12}gap {gap:8.4f}  ESS {ess.mean():.3f} ({ess.min():.3f})", flush=True)
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def check(name, num_data=4, num_particles=100_000):
    """The largest error of the exact evidences, in standard errors of sampling from the prior."""
    problem = importlib.import_module(f"posteriors.{name}")
    data = tuple(values[:num_data] for values in draw(problem))
    log_w = jnp.asarray(log_weights(problem, prior(problem), {}, data, jax.random.key(2), num_particles))
    shift = log_w.max(axis=0)
    w = jnp.exp(log_w - shift)
    error = w.std(axis=0) / w.mean(axis=0) / num_particles**0.5
    difference = jnp.log(w.mean(axis=0)) + shift - problem.log_evidence(*data)
    print(f"{name:<14}nats {np.round(difference, 4)}  standard errors {np.round(difference / error, 1)}", flush=True)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=CLASSES)
    parser.add_argument("--guides", nargs="+", choices=GUIDES, default=list(GUIDES))
    parser.add_argument("--steps", type=int, help="of training; default 3,000, and 1,500 where Python branches")
    parser.add_argument("--dreams", type=int, default=2, help="of each of the 64 data in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--check", action="store_true", help="hold the exact evidences against sampling from the prior")
    args = parser.parse_args()
    if args.check:
        for name in args.classes:
            check(name)
        return
    print(f"| class | {' | '.join(args.guides)} |")
    for name in args.classes:
        row(name, args.guides, args)


if __name__ == "__main__":
    main()
