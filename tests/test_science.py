"""The science page shows what `benchmarks/reproduce.py` has computed, and all of it."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def reproduce(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("reproduce")
    for name in [name for name in sys.modules if name == "reproduce" or name.split(".")[0] == "experiments"]:
        del sys.modules[name]


@pytest.mark.usefixtures("allow_rank_promotion")
def test_the_tables_of_the_science_page_are_those_of_the_results(reproduce):
    text = reproduce.SCIENCE.read_text()
    assert reproduce.page(text) == text


def test_every_experiment_has_results_and_a_section(reproduce):
    text = reproduce.SCIENCE.read_text()
    assert sorted(re.findall(r"<!-- results: (\w+) -->", text)) == reproduce.EXPERIMENTS
    for name in reproduce.EXPERIMENTS:
        kept, _ = reproduce.load(name)
        assert f"`{kept['command']}`" in text
        assert [entry["settings"] for entry in kept["runs"]] == reproduce.experiment(name).SETTINGS, name
        assert (reproduce.RESULTS / f"{name}.json").stat().st_size < 150_000


def test_every_figure_of_an_experiment_is_on_the_page(reproduce):
    text = reproduce.SCIENCE.read_text()
    for name in reproduce.EXPERIMENTS:
        if hasattr(reproduce.experiment(name), "figure"):
            assert f"(figures/science_{name}.png)" in text
            assert (reproduce.FIGURES / f"science_{name}.png").exists()


def imported(path):
    """Modules that a file imports, and what it takes from those of the benchmarks."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            is_folder = (BENCHMARKS / node.module).is_dir()
            yield from ((node.module, alias.name if is_folder else None) for alias in node.names)


def exists(module, name):
    if importlib.util.find_spec(module if name is None else f"{module}.{name}") is not None:
        return True
    return name is not None and hasattr(importlib.import_module(module), name)


def test_benchmarks_import_modules_that_exist(monkeypatch):
    """Nothing imports the scripts, so that without this nobody would see that a module has moved."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    others = {"coix", "pyro", "torch"}  # of `benchmarks/requirements.txt`, which tests do without
    wanted = {pair for path in BENCHMARKS.rglob("*.py") for pair in imported(path)}
    assert {("experiments", "mixture"), ("rws_jax", None)} <= wanted
    assert not {pair for pair in wanted if pair[0].split(".")[0] not in others and not exists(*pair)}
