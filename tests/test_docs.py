"""What the pages in `docs` say is run: their Python blocks, in both libraries where Pyro is installed."""

import re
import tomllib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import rws_jax

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs"


def blocks(page):
    """The Python blocks of a page, in order."""
    return re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)


def mixture_data(num_data=4000):
    """What the example of `from_pyro.md` is trained on: 30 % from N(1, 1), the others from N(-1, 1)."""
    rng = np.random.default_rng(0)
    z = rng.random(num_data) < 0.3
    return (2.0 * z - 1.0 + rng.normal(size=num_data)).astype(np.float32)


@pytest.mark.usefixtures("allow_key_reuse")  # evaluate takes the key of the next update
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("library", ["pyro", "rws_jax"])
def test_the_example_of_the_migration_page_trains_by_all_three_losses(library):
    if library == "pyro":
        pytest.importorskip("pyro", reason="Pyro is installed for this comparison alone; see CONTRIBUTING")
    pyro_block, own_block, train_block, *_ = blocks("from_pyro.md")
    page = {}
    exec({"pyro": pyro_block, "rws_jax": own_block}[library] + train_block, page)
    results = page["train_all"](mixture_data())
    assert list(results) == ["standard", "pure wake", "pure sleep"]
    for name, params in results.items():
        assert params["slope"] == pytest.approx(2.0, abs=0.4), name
        assert params["bias"] == pytest.approx(-0.85, abs=0.4), name
        assert ("weight" in params) == (name != "pure sleep")
        assert params.get("weight", 0.3) == pytest.approx(0.3, abs=0.08), name


def test_the_two_optimizers_of_the_migration_page_update_at_their_own_rates():
    _, own_block, _, optimizers, *_ = blocks("from_pyro.md")
    page = {}
    exec(own_block + optimizers, page)
    svi, data = page["svi"], {"x": jnp.array(0.3)}
    state, update = svi.init(page["jax"].random.key(0), observations=data), page["jax"].jit(svi.update)
    before = svi.optim.get_params(state.optim_state)
    after = svi.optim.get_params(update(state, observations=data)[0].optim_state)
    moved = {name: float(jnp.abs(after[name] - before[name])) for name in before}
    assert moved == pytest.approx({"weight": 1e-3, "slope": 1e-2, "bias": 1e-2}, rel=1e-3)  # Adam's first step


def test_the_repository_has_one_address_and_one_version():
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    files = ["*.cff", "*.md", "pyproject.toml", "docs/*.md", "benchmarks/*.md", "tests/*.md", "notebooks/*.ipynb"]
    texts = {path: path.read_text() for pattern in files for path in ROOT.glob(pattern)}
    found = {path: set(re.findall(r"https://github\.com/[\w-]+/rws_jax", text)) for path, text in texts.items()}
    assert {path: urls for path, urls in found.items() if urls - {address}} == {}
    raw = address.replace("github.com", "raw.githubusercontent.com")
    for path, text in texts.items():
        assert set(re.findall(r"https://raw\.githubusercontent\.com/[\w-]+/rws_jax", text)) <= {raw}, path
    citation = texts[ROOT / "CITATION.cff"]
    assert f"repository-code: {address}\n" in citation
    assert f"version: {rws_jax.__version__}\n" in citation
