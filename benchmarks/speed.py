"""How long does a training step take, against the same one written by hand and in other libraries?

    python -m pip install -e ".[demo]" -r benchmarks/requirements.txt
    python benchmarks/speed.py --output speed.json

The programs are in `workloads`, the libraries in `contenders.py`; one that is not installed is skipped. All train on
the same batch, from the same parameters, with Adam, on wake-theta and wake-phi. Contenders take turns, in an order
that is drawn anew in every round, each with a block of steps of at least 50 ms.

Prints, by workload and number of particles K:

    loop      ms for a step in a Python loop, called as a user calls it; median over rounds
    scan      ms for a step inside of one compiled `lax.scan` of as many steps, logs included
    compile   seconds to trace, lower and compile a step; median of 3
    x         beside each of these, the figure over that of rws_jax (above 1: rws_jax is faster); for loop and scan the
              median of the ratios of each round, so that what else the machine does cancels out
    Mflop     floating point operations of a step, and
    MB        bytes that it reads and writes, by XLA's cost analysis
    peak      MB of arguments, results and temporaries of a step, by XLA's memory analysis

With several devices (`jax.devices`), one table each; Pyro is on the CPU in all of them.

--check compares what is computed instead: the mean bound and the mean gradients of model and guide, on a single datum,
with those of rws_jax. Distances are in standard errors, root mean square over coordinates: about 1 if all is the same.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import random
import statistics
import time
import warnings
from pathlib import Path

import jax
from agreement import check
from contenders import CONTENDERS, Setting, takes_part
from jax import lax

import rws_jax

WORKLOADS = ("mixture", "sbn", "vae", "state_space")
NEEDS = {"Pyro": "pyro", "coix": "coix"}  # module of a contender
LIBRARIES = ("rws_jax", "jax", "jaxlib", "numpyro", "optax", "flax", "coix", "pyro-ppl", "torch")
COLUMNS = ("loop", "x", "scan", "x", "compile", "x", "Mflop", "MB", "peak")
BLOCK_SECONDS = 0.05


class Runner:
    """One contender in one setting: compiled, warm, and with a number of steps to a block."""

    def __init__(self, name, setting):
        self.state, self.step, self.x, *_ = CONTENDERS[name](setting)
        self.compiled = hasattr(self.step, "lower")
        self.num_steps, self.scanned = 1, None
        self.loop()
        while (seconds := self.loop()) < BLOCK_SECONDS:
            self.num_steps = max(2 * self.num_steps, int(self.num_steps * BLOCK_SECONDS / seconds) + 1)
        if self.compiled:
            body = lambda state, _: self.step(state, self.x)
            scan = jax.jit(lambda state: lax.scan(body, state, length=self.num_steps))
            self.scanned = scan.lower(self.state).compile()
            self.scan()

    def loop(self):
        """Seconds of a block in a Python loop."""
        state, begin = self.state, time.perf_counter()
        for _ in range(self.num_steps):
            state, logs = self.step(state, self.x)
        jax.block_until_ready((state, logs))
        return time.perf_counter() - begin

    def scan(self):
        """Seconds of a block in one compiled loop."""
        begin = time.perf_counter()
        jax.block_until_ready(self.scanned(self.state))
        return time.perf_counter() - begin

    def compile(self):
        """Seconds to compile the step, and the result."""
        jax.clear_caches()
        begin = time.perf_counter()
        compiled = self.step.lower(self.state, self.x).compile()
        return time.perf_counter() - begin, compiled


def measure(runners, num_rounds):
    """Figures by contender."""
    rounds = [{name: {} for name in runners} for _ in range(num_rounds)]
    compile_rounds = [{name: {} for name in runners} for _ in range(3)]
    static = {name: {} for name in runners}
    for figures in compile_rounds:
        for name in shuffled(runners):
            if runners[name].compiled:
                figures[name]["compile"], compiled = runners[name].compile()
                static[name] = cost(compiled)
    for name in runners:
        runners[name].loop()  # has the step compiled once more
    for figures in rounds:
        for name in shuffled(runners):
            runner = runners[name]
            figures[name]["loop"] = 1e3 * runner.loop() / runner.num_steps
            if runner.compiled:
                figures[name]["scan"] = 1e3 * runner.scan() / runner.num_steps
    rows = {}
    for name in runners:
        rows[name] = {"contender": name, "num_steps": runners[name].num_steps}
        for key, source in (("loop", rounds), ("scan", rounds), ("compile", compile_rounds)):
            if key in source[0][name]:
                rows[name][key] = statistics.median(figures[name][key] for figures in source)
                if "rws_jax" in runners:
                    ratios = [figures[name][key] / figures["rws_jax"][key] for figures in source]
                    rows[name][f"{key}_ratio"] = statistics.median(ratios)
        rows[name] |= static[name]
    return list(rows.values())


def shuffled(names):
    """In random order: threads of one contender may still be busy when the next one starts."""
    return random.sample(list(names), len(names))


def cost(compiled):
    """What XLA tells of a compiled step."""
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return {"Mflop": analysis["flops"] / 1e6, "MB": analysis["bytes accessed"] / 1e6, "peak": peak / 1e6}


def line(row):
    """A row of the table."""
    keys = ("loop", "loop_ratio", "scan", "scan_ratio", "compile", "compile_ratio", "Mflop", "MB", "peak")
    digits = (3, 2, 3, 2, 2, 2, 2, 2, 2)
    cells = (f"{row[key]:10.{n}f}" if key in row else f"{'-':>10}" for key, n in zip(keys, digits, strict=True))
    return f"{row['contender']:<14}" + "".join(cells)


def settings(names, **kwargs):
    """Every workload, with every number of particles."""
    for name in names:
        workload = importlib.import_module(f"workloads.{name}")
        x = workload.data(**kwargs)
        start = rws_jax.make_step(workload.model, workload.guide).init(jax.random.key(0), x)
        for num_particles in workload.NUM_PARTICLES:
            yield name, Setting(workload, num_particles, x, *start.plain[:2])


def installed(names):
    """Those of the contenders that are; the others are named."""
    missing = [name for name in names if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None]
    for name in missing:
        print(f"{name} is skipped: it is not installed")
    return [name for name in names if name not in missing]


def taking_part(names, setting):
    """Those of the contenders that have programs for this workload."""
    return [name for name in names if takes_part(name, setting.workload)]


def versions():
    """Of all libraries that take part."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def main():
    """Print the tables and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    names = installed(args.contenders)
    warnings.filterwarnings("ignore", "Currently, SVI with")  # RenyiELBO and discrete latents: wake-theta is right
    if args.check:
        for name, setting in settings(args.workloads, size=1):
            check(f"{name}, K = {setting.num_particles}", taking_part(names, setting), setting)
        return
    devices = [jax.devices(backend)[0] for backend in dict.fromkeys([jax.default_backend(), "cpu"])]
    rows = []
    for device in devices:
        with jax.default_device(device):
            for name, setting in settings(args.workloads):
                print(f"\n{name}, K = {setting.num_particles}, {device.platform}: {device.device_kind}")
                print(f"{'':<14}" + "".join(f"{column:>10}" for column in COLUMNS))
                for row in measure({n: Runner(n, setting) for n in taking_part(names, setting)}, args.rounds):
                    print(line(row), flush=True)
                    place = {"device": device.device_kind, "workload": name, "num_particles": setting.num_particles}
                    rows.append(place | row)
    if args.output is not None:
        about = {"date": datetime.date.today().isoformat(), "platform": platform.platform(), "versions": versions()}
        args.output.write_text(json.dumps(about | {"num_rounds": args.rounds, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
