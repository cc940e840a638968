"""Programs with too many paths for one function: a few are compiled as one, and particles of the others leave it."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import rws_jax
from rws_jax.execution import by_paths
from rws_jax.execution.branching import compiled_tree, handler
from rws_jax.execution.branching.path_cache import PathCache
from tests.core.test_support import enable_x64
from tests.execution import test_branching as branching
from tests.execution.test_rare_paths import PROGRAMS

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
BRANCHES = {"branching": True}


def careful_model(x):
    """Only what is accepted has a square root; its derivative is no number for all others."""
    scale, number, accepted = numpyro.param("scale", 1.2), 0, 0
    while not accepted:
        z = numpyro.sample(f"z_{number}", dist.Normal(0.0, 1.0))
        accept = dist.Bernoulli(jnp.where(z > 0.0, 0.7, 0.0))
        accepted = numpyro.sample(f"accept_{number}", accept, infer=BRANCHES)
        number += 1
    numpyro.sample("x", dist.Normal(jnp.sqrt(scale * z), 0.5), obs=x)


def careful_guide(x):
    loc, number, accepted = numpyro.param("loc", 0.3), 0, 0
    while not accepted:
        z = numpyro.sample(f"z_{number}", dist.Normal(loc, 1.0))
        accept = dist.Bernoulli(jnp.where(z > 0.0, 0.7, 0.0))
        accepted = numpyro.sample(f"accept_{number}", accept, infer=BRANCHES)
        number += 1


LOOPS = {name: PROGRAMS[name] for name in ("geometric", "rejection loop")} | {
    "careful": (careful_model, careful_guide, jnp.array([0.4, 1.0]))
}


@pytest.fixture
def caches(monkeypatch):
    """The losses compile trees at once, and nothing else; their caches."""
    made = []

    def cache_of(*fns):
        made.append(PathCache(compile_after=10**6, trees_at_once=True))
        return made[-1]

    monkeypatch.setattr(by_paths, "_cache_of", functools.cache(cache_of))
    return made


def num_trees(cache):
    return sum(trace is compiled_tree.TREE for _, trace, _ in cache._compiled)


def loss_and_gradient(loss, programs, params, x, **options):
    options = {"num_particles": 6, "data_axes": 0, **options}
    evaluate = lambda theta, phi: loss(theta, phi, *branching.seeded(*programs), x, **options)
    return jax.value_and_grad(evaluate, argnums=(0, 1))(*params)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"defensive": 0.3}], ids=["wake and sleep", "defensive"])
@pytest.mark.parametrize("rounds", [2, 8])
@pytest.mark.parametrize("name", LOOPS)
def test_particles_of_a_tree_compute_what_unjitted_ones_do(name, rounds, options, caches, monkeypatch):
    """With two branching sites, about a quarter of all leave; with defensive proposals one of them says who draws."""
    monkeypatch.setattr(compiled_tree, "TREE_DEPTH", rounds)
    monkeypatch.setattr(compiled_tree, "_MAX_LEFT", 1.0)
    *programs, x = LOOPS[name]
    params = branching.params_of(*programs, x)
    found = branching.losses_and_gradients(programs, params, x[:2], 6, **options)
    expected = branching.losses_and_gradients(programs, params, x[:2], 6, vectorize_particles=False, **options)
    chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=1e-5)
    if name != "careful":
        assert [num_trees(cache) for cache in caches] == [1] * len(caches)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["geometric", "rejection loop"])
def test_a_tree_keeps_double_precision(name, caches, monkeypatch):
    monkeypatch.setattr(compiled_tree, "TREE_DEPTH", 3)
    monkeypatch.setattr(compiled_tree, "_MAX_LEFT", 1.0)
    with enable_x64(True):
        *programs, x = LOOPS[name]
        x = np.asarray(x[:2], np.float64)
        params = branching.params_of(*programs, x)
        found = branching.losses_and_gradients(programs, params, x, 6)
        expected = branching.losses_and_gradients(programs, params, x, 6, vectorize_particles=False)
        chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-10)
    assert all(map(num_trees, caches))


@contextlib.contextmanager
def small_trees(**options):
    """Trees of one branching site, compiled at once, and the cache of the losses within."""
    cache = PathCache(compile_after=10**6, trees_at_once=True, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_tree, "TREE_DEPTH", 1)
        patch.setattr(compiled_tree, "_MAX_LEFT", 1.0)
        patch.setattr(by_paths, "_cache_of", lambda *fns: cache)
        yield cache


@pytest.mark.parametrize("options", [{}, {"chunk_size": 8}], ids=["at once", "chunks"])
def test_particles_that_leave_run_along_their_paths(options):
    """The value and the gradient are those of paths alone, and so are the counts."""
    *programs, x = LOOPS["geometric"]
    args = rws_jax.wake_phi_loss, programs, ({"p": 0.5}, {"a": -0.5}), x[:2]
    with small_trees() as cache:
        found = loss_and_gradient(*args, **options)
    with small_trees(max_paths=1) as alone:
        expected = loss_and_gradient(*args, **options)
    chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=1e-6)
    assert cache.traces == alone.traces
    assert [num_trees(cache), num_trees(alone)] == [1, 0]
    assert 0 < cache.num_unjitted < alone.num_unjitted == 12


def test_derivatives_along_paths_that_are_not_taken_do_no_harm():
    """A step that would meet one which is not finite runs by paths, as do all that follow."""
    *programs, x = LOOPS["careful"]
    args = rws_jax.wake_theta_loss, programs, ({"scale": 1.2}, {"loc": 0.3}), x
    with small_trees() as cache:
        found = loss_and_gradient(*args)
    expected = loss_and_gradient(*args, vectorize_particles=False)
    chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=1e-6)
    assert cache._without_tree
    assert num_trees(cache) == 0


def test_a_tree_is_traced_once(monkeypatch):
    """One function for all steps, and it draws all but the few that leave."""
    monkeypatch.setattr(compiled_tree, "TREE_DEPTH", 4)
    traced = []
    init = compiled_tree.Truncated._all_ends
    monkeypatch.setattr(
        compiled_tree.Truncated, "_all_ends", lambda self, *args: (traced.append(self), init(self, *args))[1]
    )
    *programs, x = LOOPS["geometric"]
    rws = rws_jax.make_step(*programs, num_particles=6, data_axes=0)
    state = rws.init(jax.random.key(0), x)
    for _ in range(3):
        state, info = rws.step(state, x)
    assert len(traced) == 1
    assert info.num_compiled == 1
    assert info.num_unjitted <= 2
    assert info.finite


def test_a_tree_that_was_traced_for_double_precision_leaves_that_for_single_as_it_is():
    """JAX traces a function again in another context, and what one trace has noted is not for the other."""
    *programs, x = LOOPS["geometric"]
    x = np.asarray(x, np.float32)
    params = jax.tree.map(jnp.float32, branching.params_of(*programs, x))
    with small_trees() as cache:
        value, grads = loss_and_gradient(rws_jax.wake_phi_loss, programs, params, x)
        with enable_x64(True):
            loss = rws_jax.wake_phi_loss(*params, *branching.seeded(*programs), x, num_particles=6, data_axes=0)
        again = loss_and_gradient(rws_jax.wake_phi_loss, programs, params, x)
    assert num_trees(cache)
    assert float(loss) == pytest.approx(float(value), rel=1e-5)
    chex.assert_trees_all_equal(again, (value, grads))


def test_a_loop_that_a_nan_keeps_from_its_end_is_an_error(monkeypatch):
    monkeypatch.setattr(handler, "MAX_SITES", 50)

    def guide(x):
        number, slope = 0, numpyro.param("slope", 0.1)
        while not numpyro.sample(f"end_{number}", dist.Bernoulli(logits=slope * x), infer=BRANCHES):
            number += 1

    def model(x):
        number = 0
        while not numpyro.sample(f"end_{number}", dist.Bernoulli(0.5), infer=BRANCHES):
            number += 1
        numpyro.sample("x", dist.Normal(number, 1.0), obs=x)

    with pytest.raises(ValueError, match="no end of a loop at branching site 'end_50'") as error:
        rws_jax.wake_theta_loss({}, {"slope": 0.1}, *branching.seeded(model, guide), jnp.array([jnp.nan]), data_axes=0)
    assert "end_5=0, ... (38 more) ..., end_44=0" in str(error.value)
    assert "at most 50 branching sites" in str(error.value)
