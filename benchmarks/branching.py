"""Programs that branch in Python: compiled as a whole, by paths, and in Pyro.

    python -m pip install -e ".[demo]" -r benchmarks/requirements.txt
    python benchmarks/branching.py
    python benchmarks/branching.py --train 2 --num-steps 100000
    python benchmarks/branching.py --programs grammar marsaglia attend_infer_repeat

The mixture of `experiments/mixture.py` with a Python `if` for each of its 20 branches, for one datum;
`data_axes=0` runs it on 100.

The first times a step of `rws_jax.make_step` after warm-up: compiled as a whole, inside of one compiled `lax.scan` of
100 steps and in a Python loop; by paths, with max_paths=1; and vectorised, the same program in a plate without
branches, in a scan. They take turns with a step of Pyro's `ReweightedWakeSleep(vectorize_particles=False)`, which is
called once for each datum, as weights would otherwise be joint over the batch, and takes one step of Adam on the sum of
the gradients. Prints milliseconds for each (medians over rounds), the median of the ratios to the first one within each
round, and seconds until the first step is done.

The second trains by paths with defensive proposals, from the "far" start of the same, for so many particles, and
prints the errors of the same after every tenth of the steps.

The third takes the first --first-steps steps of programs of `programs/`, compilation included, in turns of ten with
Pyro's, and prints seconds of processor time and of the clock, and milliseconds for each of the last ten steps.
"""

import argparse
import importlib
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from experiments import mixture

import rws_jax

BRANCHES = {"branching": True}
IN_SCAN = 100  # steps in a compiled loop


def model(x):
    """The branch, by Python, of one datum."""
    logits = numpyro.param("logits", mixture.STARTS["far"]) / 2.0
    z = int(numpyro.sample("z", dist.Categorical(logits=logits), infer=BRANCHES))
    for branch in range(mixture.NUM_BRANCHES):
        if z == branch:
            numpyro.sample("x", dist.Normal(10.0 * branch, 5.0), obs=x)


def guide(x):
    """As in `experiments/mixture.py`, on one datum."""
    hidden = jnp.tanh(mixture.linear("q1", x[None], 16))
    hidden = jnp.tanh(mixture.linear("q2", hidden, 16))
    numpyro.sample("z", dist.Categorical(logits=mixture.linear("q3", hidden, mixture.NUM_BRANCHES)), infer=BRANCHES)


def uniform_guide(x):
    """Proposes every branch."""
    numpyro.sample("z", dist.Categorical(jnp.full(mixture.NUM_BRANCHES, 1.0 / mixture.NUM_BRANCHES)), infer=BRANCHES)


def train(num_particles, num_steps, seed):
    """Errors as training goes on."""
    rws = rws_jax.make_step(
        model,
        guide,
        num_particles=num_particles,
        defensive=0.2,
        defensive_guide=uniform_guide,
        data_axes=0,
        max_paths=1,
    )
    init_key, data_key = jax.random.split(jax.random.key(seed))
    draw = jax.jit(lambda index: mixture.draw_data(jax.random.fold_in(data_key, index)))
    state, test = rws.init(init_key, draw(0)), mixture.draw_data(jax.random.key(123))
    errors = jax.jit(mixture.errors)
    begin = time.perf_counter()
    print(f"{'steps':>8}{'p-error':>9}{'q-error':>9}{'functions':>11}{'ms/step':>9}")
    for number in range(1, num_steps + 1):
        state, info = rws.step(state, draw(number))
        if number % max(1, num_steps // 10) == 0:
            milliseconds = 1e3 * (time.perf_counter() - begin) / number
            p_error, q_error = errors(*state.plain[:2], test)
            print(f"{number:>8}{p_error:>9.4f}{q_error:>9.4f}{info.num_compiled:>11}{milliseconds:>9.1f}", flush=True)


def by_rws_jax(programs, x, num_particles, **options):
    """A step in a Python loop; returns its info."""
    rws = rws_jax.make_step(*programs, num_particles=num_particles, data_axes=0, **options)
    state = rws.init(jax.random.key(0), x)

    def step():
        nonlocal state
        state, info = rws.step(state, x)
        return jax.block_until_ready((state, info))[1]

    return step


def pyro_programs(start):
    """The mixture in Pyro."""
    import pyro
    import torch
    from pyro import distributions as pyro_dist

    def linear(name, x):
        weight, bias = (f"{name}_{kind}" for kind in ("weight", "bias"))
        return x @ pyro.param(weight, start[weight]) + pyro.param(bias, start[bias])

    def pyro_model(x):
        logits = pyro.param("logits", start["logits"]) / 2.0
        z = int(pyro.sample("z", pyro_dist.Categorical(logits=logits)))
        for branch in range(mixture.NUM_BRANCHES):
            if z == branch:
                pyro.sample("x", pyro_dist.Normal(10.0 * branch, 5.0), obs=x)

    def pyro_guide(x):
        hidden = torch.tanh(linear("q1", x[None]))
        hidden = torch.tanh(linear("q2", hidden))
        pyro.sample("z", pyro_dist.Categorical(logits=linear("q3", hidden)))

    return pyro_model, pyro_guide


def by_pyro(programs, x, num_particles, programs_of):
    """A step of Pyro, by one thread, which is faster here."""
    import numpy as np
    import pyro
    import torch
    from pyro import infer

    torch.set_num_threads(1)
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    start = rws_jax.make_step(*programs, data_axes=0, num_particles=num_particles).init(jax.random.key(0), x)
    start = {name: torch.tensor(np.array(value)) for name, value in (start.theta | start.phi).items()}
    pyro_model, pyro_guide = programs_of(start)
    loss = infer.ReweightedWakeSleep(num_particles=num_particles, vectorize_particles=False)
    data = torch.tensor(np.array(x))
    loss.loss_and_grads(pyro_model, pyro_guide, data[0])  # makes the parameters
    params = [value.unconstrained() for _, value in pyro.get_param_store().named_parameters()]
    optimizer = torch.optim.Adam(params, lr=1e-3)

    def step():
        optimizer.zero_grad()
        for datum in data:
            loss.loss_and_grads(pyro_model, pyro_guide, datum)
        optimizer.step()

    return step


def in_scan(programs, x, num_particles, **options):
    """As many steps in one compiled loop."""
    rws = rws_jax.make_step(*programs, num_particles=num_particles, **options)
    state = rws.init(jax.random.key(0), x)
    many = jax.jit(lambda state: jax.lax.scan(lambda state, _: rws.step(state, x), state, length=IN_SCAN))
    return lambda: jax.block_until_ready(many(state))


def compare(num_particles, num_steps, num_rounds):
    """Steps in turns."""
    x = mixture.draw_data(jax.random.key(0))
    of_one, in_plate = (model, guide), (mixture.model, mixture.guide)
    steps = {
        "whole, scan": in_scan(of_one, x, num_particles, data_axes=0),
        "whole, loop": by_rws_jax(of_one, x, num_particles),
        "by paths": by_rws_jax(of_one, x, num_particles, max_paths=1),
        "vectorised, scan": in_scan(in_plate, x, num_particles),
    }
    first_seconds = {}
    for name, step in steps.items():
        begin = time.perf_counter()
        step()
        first_seconds[name] = time.perf_counter() - begin
    for _ in range(num_steps):
        info = steps["by paths"]()
    steps["Pyro"] = by_pyro(of_one, x, num_particles, pyro_programs)
    seconds = {name: [] for name in steps}
    for _ in range(num_rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append((time.perf_counter() - begin) / (IN_SCAN if name.endswith("scan") else 1))
    print(f"K = {num_particles}, {len(x)} data, {num_steps} steps of warm-up by paths")
    for name in steps:
        ratio = statistics.median(b / a for a, b in zip(seconds["whole, scan"], seconds[name], strict=True))
        first = f"{first_seconds[name]:10.1f} s" if name in first_seconds else ""
        print(f"{name:<18}{1e3 * statistics.median(seconds[name]):9.2f} ms{ratio:9.2f}{first}", flush=True)
    print(f"by paths: {info.num_paths} paths, {info.num_compiled} functions")


def first_steps(name, num_particles, num_steps):
    """The first steps of both, in turns of ten."""
    programs = importlib.import_module(f"programs.{name}")
    x = programs.draw_data(jax.random.key(0))
    ours = by_rws_jax((programs.model, programs.guide), x, num_particles)
    pyros = by_pyro((programs.model, programs.guide), x, num_particles, programs.pyro_programs)
    info, turns = None, {ours: [], pyros: []}  # processor time and time by the clock of ten steps each
    for _ in range(num_steps // 10):
        for step in turns:
            begin = time.process_time(), time.perf_counter()
            for _ in range(10):
                info = step() or info  # Pyro has none
            turns[step].append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
    print(f"{name}, {len(x)} data, K = {num_particles}, the first {num_steps} steps")
    print(f"{'':>10}{'processor, s':>14}{'clock, s':>10}{'last ten, ms/step':>19}")
    for step, label in ((ours, "rws_jax"), (pyros, "Pyro")):
        processor, clock = map(sum, zip(*turns[step], strict=True))
        print(f"{label:>10}{processor:>14.1f}{clock:>10.1f}{1e2 * turns[step][-1][1]:>19.1f}")
    counts = f"{info.num_paths} paths, {info.num_unjitted or 0} un-jitted runs"
    how = "compiled as a whole" if info.num_compiled is None else f"{info.num_compiled} functions"
    print(f"{counts} in the last step, {how}")


def main():
    """Compare, or train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-particles", type=int, nargs="+", default=[2, 20])
    parser.add_argument("--train", type=int, metavar="K")
    parser.add_argument("--num-steps", type=int, default=1000)
    parser.add_argument("--num-rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--programs", nargs="+", choices=["grammar", "marsaglia", "attend_infer_repeat"])
    parser.add_argument("--first-steps", type=int, default=100)
    args = parser.parse_args()
    if args.train is not None:
        train(args.train, args.num_steps, args.seed)
        return
    if args.programs is not None:
        for name, num_particles in itertools.product(args.programs, args.num_particles):
            first_steps(name, num_particles, args.first_steps)
        return
    for num_particles in args.num_particles:
        compare(num_particles, args.num_steps, args.num_rounds)


if __name__ == "__main__":
    main()
