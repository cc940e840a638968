"""Results of papers, computed again. Each experiment has a name, and its numbers are kept in `results/NAME.json`.

    python benchmarks/reproduce.py mixture          # what `results/mixture.json` has already is not computed again
    python benchmarks/reproduce.py mixture --fresh  # all of it
    python benchmarks/reproduce.py --tables         # tables of docs/science.md, from the JSON
    python benchmarks/reproduce.py --figures        # its figures, from the JSON

An experiment is a module of `experiments/` with these names:

    SETTINGS         list of dicts: the arguments of each run, the number of its seeds among them
    run(**settings)  numbers of one run: a dict of numbers or of lists, for each seed one
    tables(runs)     Markdown, from a list of dicts `settings | numbers`
    figure(runs)     if there is one, a figure of matplotlib, from the same
"""

import argparse
import datetime
import importlib
import json
import re
import time
from pathlib import Path

import jax
import jaxlib
import numpyro
import optax

import rws_jax

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SCIENCE = ROOT / "docs" / "science.md"
FIGURES = ROOT / "docs" / "figures"
EXPERIMENTS = sorted(path.stem for path in (ROOT / "benchmarks" / "experiments").glob("[a-z]*.py"))
LIBRARIES = (jax, jaxlib, numpyro, optax, rws_jax)


def experiment(name):
    """The module of an experiment."""
    return importlib.import_module(f"experiments.{name}")


def setup():
    """What numbers depend on besides their settings."""
    versions = {library.__name__: library.__version__ for library in LIBRARIES}
    return {"versions": versions, "device": jax.devices()[0].device_kind}


def reproduce(name, fresh=False):
    """Run what is missing, and write the file after each run."""
    path = RESULTS / f"{name}.json"
    before = setup() | {"command": f"python benchmarks/reproduce.py {name}", "runs": []}
    kept = json.loads(path.read_text()) if path.exists() and not fresh else before
    here, made = ({key: results[key] for key in setup()} for results in (before, kept))
    if here != made:
        raise SystemExit(f"{path.name} was made with {made}; here is {here}. With --fresh all of it is computed again.")
    done = {json.dumps(entry["settings"]): entry for entry in kept["runs"]}
    module, entries = experiment(name), []
    for settings in module.SETTINGS:
        entry = done.get(json.dumps(settings))
        if entry is None:
            start = time.perf_counter()
            numbers = module.run(**settings)
            seconds = round(time.perf_counter() - start, 1)
            date = datetime.date.today().isoformat()
            entry = {"settings": settings, "numbers": numbers, "seconds": seconds, "date": date}
            print(f"{settings}: {seconds} s", flush=True)
        entries.append(entry)
        done[json.dumps(settings)] = entry
        path.write_text(text_of(kept | {"runs": list(done.values())}))
    path.write_text(text_of(kept | {"runs": entries}))  # in order, and without runs that are no longer asked for


def text_of(results):
    """JSON with a line for each run."""
    head = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in results.items() if key != "runs"]
    runs = ",\n".join("  " + json.dumps(entry, separators=(",", ":")) for entry in results["runs"])
    return "\n".join(["{", *head, ' "runs": [', runs, " ]", "}"]) + "\n"


def load(name):
    """What is kept of an experiment, and its runs as dicts `settings | numbers`."""
    kept = json.loads((RESULTS / f"{name}.json").read_text())
    return kept, [entry["settings"] | entry["numbers"] for entry in kept["runs"]]


def tables(name):
    """What the science page shows of an experiment."""
    kept, runs = load(name)
    versions = ", ".join(f"{library} {version}" for library, version in kept["versions"].items())
    dates = sorted({entry["date"] for entry in kept["runs"]})
    days = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    made = f"`{kept['command']}` ({kept['device']}, {days}; {versions})"
    return f"{made}\n\n{experiment(name).tables(runs).strip()}"


def page(text):
    """The science page with its tables made anew, between `<!-- results: NAME -->` and `<!-- end -->`."""
    return re.sub(
        r"<!-- results: (\w+) -->\n.*?<!-- end -->",
        lambda match: f"<!-- results: {match[1]} -->\n\n{tables(match[1])}\n\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def draw(name):
    """Save the figure of an experiment, if it has one."""
    module = experiment(name)
    if hasattr(module, "figure"):
        module.figure(load(name)[1]).savefig(FIGURES / f"science_{name}.png", dpi=100, bbox_inches="tight")


def main():
    """Compute, or write tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--fresh", action="store_true", help="compute what is there already, too")
    parser.add_argument("--tables", action="store_true", help="write the tables of docs/science.md")
    parser.add_argument("--figures", action="store_true", help="draw its figures (all, or the named ones)")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(EXPERIMENTS)):
        parser.error(f"no experiment {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    for name in args.names:
        reproduce(name, args.fresh)
    for name in (args.names or [path.stem for path in RESULTS.glob("*.json")]) if args.figures else ():
        draw(name)
    if args.tables:
        SCIENCE.write_text(page(SCIENCE.read_text()))


if __name__ == "__main__":
    main()
