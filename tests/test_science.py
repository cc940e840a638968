"""The science page shows what `benchmarks/reproduce.py` has computed, and all of it."""

import importlib
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
