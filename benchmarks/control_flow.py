"""The ways to write control flow of `docs/control_flow.md`, in turns.

    python benchmarks/control_flow.py

Takes the programs from that page. Prints for each way seconds until the first step is done, and milliseconds for a step
after warm-up, median of 20 in turns, on 100 data with 10 particles each; un-jitted on 2 data, as it takes long.
Branching sites are compiled as a whole and, with max_paths=1, by paths.
"""

import re
import statistics
import time
from pathlib import Path

import jax

import rws_jax

PAGE = Path(__file__).parent.parent / "docs" / "control_flow.md"


def programs_of_the_page():
    """The names that its examples define."""
    code = re.findall(r"^(?:>>>|\.\.\.) ?(.*)$", PAGE.read_text().split("## 4.")[0], re.MULTILINE)
    names = {}
    exec("\n".join(code).split("adam =")[0], names)
    return names


def main():
    """Print the table."""
    page, steps = programs_of_the_page(), {}
    x = 4.0 * jax.random.normal(jax.random.key(0), (100,))
    ways = {
        "cond": (page["model_by_cond"], page["guide_by_cond"], x, {"data_axes": 0}),
        "mask": (page["model_by_mask"], page["guide_by_mask"], x, {}),
        "branching": (page["model"], page["guide"], x, {"data_axes": 0}),
        "by paths": (page["model"], page["guide"], x, {"data_axes": 0, "max_paths": 1}),
        "un-jitted": (page["model"], page["guide"], x[:2], {"data_axes": 0, "vectorize_particles": False}),
    }
    seconds, first = {name: [] for name in ways}, {}
    for name, (model, guide, x, options) in ways.items():
        rws = rws_jax.make_step(model, guide, num_particles=10, **options)
        state = rws.init(jax.random.key(0), x)
        begin = time.perf_counter()
        jax.block_until_ready(rws.step(state, x))
        first[name] = time.perf_counter() - begin
        steps[name] = (rws.step, state, x)
        for _ in range(0 if name == "un-jitted" else 50):
            state, _ = rws.step(state, x)
    for number in range(20):
        for name, (step, state, x) in steps.items():
            if name != "un-jitted" or number < 2:
                begin = time.perf_counter()
                jax.block_until_ready(step(state, x))
                seconds[name].append(time.perf_counter() - begin)
    print(f"{'':<12}{'data':>6}{'first, s':>10}{'step, ms':>10}")
    for name, (_, _, x, _) in ways.items():
        print(f"{name:<12}{len(x):>6}{first[name]:>10.1f}{1e3 * statistics.median(seconds[name]):>10.2f}")


if __name__ == "__main__":
    main()
