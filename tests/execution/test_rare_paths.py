"""Paths that few particles come along: interpreted, they compute what un-jitted particles do, and cost what is said."""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

from rws_jax.execution import by_paths
from rws_jax.execution.branching import grouped_run
from rws_jax.execution.branching.path_cache import PathCache
from tests.core.test_support import enable_x64
from tests.execution import test_branching as branching

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
BRANCHES = {"branching": True}


def loop_model(x):
    """A rejection loop without bound."""
    scale = numpyro.param("scale", 1.2)
    number, accepted = 0, 0
    while not accepted:
        u = numpyro.sample(f"u_{number}", dist.Uniform(-1.0, 1.0))
        v = numpyro.sample(f"v_{number}", dist.Uniform(-1.0, 1.0))
        square = u * u + v * v
        accept = dist.Bernoulli(jnp.where(square < 1.0, 0.9, 0.1))
        accepted = numpyro.sample(f"accept_{number}", accept, infer=BRANCHES)
        number += 1
    numpyro.sample("x", dist.Normal(scale * u / (0.1 + square), 0.5), obs=x)


def loop_guide(x):
    slope, offset = numpyro.param("slope", 0.7), numpyro.param("offset", 0.4)
    number, accepted = 0, 0
    while not accepted:
        u = numpyro.sample(f"u_{number}", dist.Uniform(-1.0, 1.0))
        v = numpyro.sample(f"v_{number}", dist.Uniform(-1.0, 1.0))
        logits = slope * (1.0 - u * u - v * v) + offset * x * u
        accepted = numpyro.sample(f"accept_{number}", dist.Bernoulli(logits=logits), infer=BRANCHES)
        number += 1


PROGRAMS = branching.PROGRAMS | {"rejection loop": (loop_model, loop_guide, jnp.array([0.4, -1.0]))}


@pytest.fixture
def compiles_none(monkeypatch):
    """The losses interpret every path."""
    monkeypatch.setattr(by_paths, "_cache_of", functools.cache(lambda *fns: PathCache(compile_after=10**6)))


def check_same(name, **options):
    *programs, x = PROGRAMS[name]
    params, x = branching.params_of(*programs, x), x[:2]
    found = branching.losses_and_gradients(programs, params, x, 4, **options)
    expected = branching.losses_and_gradients(programs, params, x, 4, vectorize_particles=False, **options)
    return found, expected


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"defensive": 0.3}], ids=["wake and sleep", "defensive"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_interpreted_particles_compute_what_unjitted_ones_do(name, options, compiles_none):
    chex.assert_trees_all_close(*check_same(name, **options), rtol=2e-4, atol=1e-5)


@pytest.mark.slow
def test_they_keep_double_precision(compiles_none):
    with enable_x64(True):
        chex.assert_trees_all_close(*check_same("rejection loop"), rtol=1e-10)


@pytest.fixture
def runs(monkeypatch):
    """How often Python runs a model and a guide, and how often values are fetched from the device."""
    counts = collections.Counter()
    fetch = jax.device_get
    monkeypatch.setattr(
        grouped_run.jax, "device_get", lambda tree: (counts.update(["fetches"]), fetch(tree))[1], raising=True
    )

    def counted(program):
        @functools.wraps(program)
        def run(x):
            counts[program.__name__] += 1
            program(x)

        return run

    return counts, counted(branching.model), counted(branching.guide)


def test_a_rare_particle_runs_once(runs):
    """The guide draws it. Both programs are run once more where a path is new, and never for the gradient."""
    counts, *programs = runs
    rws = branching.make(*programs, compile_after=10**6)
    state = rws.init(jax.random.key(0), branching.X)
    state, info = rws.step(state, branching.X)
    counts.clear()
    state, info = rws.step(state, branching.X)
    assert info.num_paths == 2
    assert info.num_unjitted == counts["guide"] == 24
    assert counts["model"] == 0


def test_values_are_fetched_once_for_each_branching_site(runs):
    """Whatever the number of paths: those at the first site, and results at the end."""
    counts, *programs = runs
    rws = branching.make(*programs)
    state, _ = branching.after(rws, 2)
    counts.clear()
    _, info = rws.step(state, branching.X)
    assert info.num_paths == 2
    assert counts == {"fetches": 2}


def test_beginnings_are_compiled_for_frequent_paths_alone():
    """A grammar has a beginning that all share, and no path worth to be compiled."""
    cache = PathCache(compile_after=10)
    trace = tuple(branching.BranchingValue.of(name, jnp.array(1)) for name in "abc")
    is_rare = lambda length: cache.find(None, trace[:length], 8) is None
    cache.count(None, trace, 10)
    assert all(map(is_rare, range(4)))
    cache.count(None, trace, 1)
    assert (None, trace[:0]) in cache._frequent
    assert (None, trace) in cache._frequent
    assert cache.num_unjitted == 11
