"""A compiled guide goes wherever a guide goes: each route trains it, or gives the numbers of another one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from numpyro.infer import SVI, Predictive, TraceGraph_ELBO

import rws_jax
from tests.guides.cases import CASES, SMALL, compiled, weights_of
from tests.models import rows

pytestmark = pytest.mark.usefixtures("allow_rank_promotion", "allow_key_reuse")

ADAM = optax.adam(0.01)
STEPS = {
    "sleep": {"insomnia": 0.0},
    "both": {"insomnia": 0.5},
    "wake": {"insomnia": 1.0},
    "chunks": {"insomnia": 0.5, "chunk_size": 2},
    "vimco": {"gradient": "vimco"},
    "defensive": {"defensive": 0.2},
}


@functools.cache
def small(name="gaussian"):
    case = CASES[name]()
    return case, *compiled(case)


def is_moved(old, new):
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), old, new)
    return {jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(changed) if leaf}


@pytest.mark.parametrize("name", rows(STEPS, fast={"both"}))
def test_a_step_moves_all_weights(name):
    case, guide, _ = small()
    options = {"phi_optimizer": ADAM, "theta_optimizer": ADAM, "num_particles": 4, **STEPS[name]}
    init, step, *_ = rws_jax.make_step(case.model, guide, **options)
    state = init(jax.random.key(0), *case.args)
    first = jax.tree.map(jnp.array, state.phi)
    state, info = step(state, *case.args)
    state, info = step(state, *case.args)
    assert info.finite
    arrays = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(first)}
    assert is_moved(first, state.phi) == {path for path in arrays if "shift" not in path and "scale" not in path}


@pytest.mark.slow
def test_a_datum_by_itself_has_the_weights_of_one_in_a_plate():
    """`data_axes=0` runs a model of one datum; its guide is another one, and trained alike."""
    case = CASES["either"]()
    guide = rws_jax.compile_guide(case.model, **SMALL)
    x = jnp.array([1.3, -0.2, 0.4])
    rws = rws_jax.make_step(case.model, guide, phi_optimizer=ADAM, insomnia=0.5, num_particles=4, data_axes=0)
    state, _ = rws.step(rws.init(jax.random.key(0), x), x)
    params = rws.get_params(state, x)
    of_all = rws_jax.importance_sample(
        jax.random.key(1), params, case.model, guide, x, num_particles=5000, data_axes=0
    ).log_evidence()
    of_one = rws_jax.importance_sample(
        jax.random.key(1), params, case.model, guide, x[1], num_particles=5000
    ).log_evidence()
    error = 5.0 * np.hypot(of_all.standard_error[1], of_one.standard_error)
    assert abs(of_all.value[1] - of_one.value) < error


@pytest.mark.slow
@pytest.mark.parametrize("loss", [TraceGraph_ELBO(), rws_jax.ReweightedWakeSleep(insomnia=0.5)], ids=["elbo", "rws"])
def test_svi_trains_it(loss):
    """The score-function estimator of NumPyro reaches proposals that cannot be reparameterised."""
    case, guide, _ = small()
    svi = SVI(case.model, guide, ADAM, loss=loss)
    state = svi.init(jax.random.key(0), *case.args)
    first = svi.get_params(state)["guide"]
    state, value = svi.update(state, *case.args)
    assert jnp.isfinite(value)
    moved = is_moved(first, svi.get_params(state)["guide"])
    assert any("outputs" in path for path in moved)
    assert not any("shift" in path or "scale" in path for path in moved)


@pytest.mark.slow
def test_predictive_draws_what_importance_sampling_draws():
    case, guide, params = small()
    drawn = Predictive(guide, params=params, num_samples=4000)(jax.random.key(1), *case.args)
    assert set(drawn) == {"z"}
    other = rws_jax.importance_sample(jax.random.key(2), params, case.model, guide, *case.args, num_particles=4000)
    error = 5.0 * np.hypot(*(v.std(axis=0) / np.sqrt(4000) for v in (drawn["z"], other.samples["z"])))
    np.testing.assert_array_less(np.abs(drawn["z"].mean(axis=0) - other.samples["z"].mean(axis=0)), error)


@pytest.mark.slow
def test_what_comes_after_training_takes_it():
    case, guide, params = small()
    key, programs = jax.random.key(0), (params, case.model, guide)
    evaluation = rws_jax.evaluate(key, *programs, [case.args], num_particles=500, progress_bar=False)
    np.testing.assert_allclose(evaluation.bounds[-1], case.log_evidence, atol=0.3)
    with_dreams = {"num_simulations": 40}
    calibration = rws_jax.simulation_based_calibration(key, *programs, *case.args, num_samples=19, **with_dreams)
    assert "z" in str(calibration)
    weighted = rws_jax.importance_sample(key, *programs, *case.args, num_particles=50)
    new = rws_jax.posterior_predictive(key, params, case.model, weighted, *case.args, num_samples=10)
    assert new["x"].shape == (10, 3)
    gap = rws_jax.simulation_gap(key, *programs, *case.args, num_particles=20, **with_dreams)
    assert str(gap)
    text = str(rws_jax.describe(case.model, guide, *case.args))
    assert "guide" in text
    assert "z" in text


@pytest.mark.slow
def test_fit_takes_minibatches():
    case, guide, _ = small("minibatch")
    x = jnp.linspace(-1.0, 1.0, 9)
    init, step, *_ = rws_jax.make_step(case.model, guide, phi_optimizer=ADAM, insomnia=0.5, num_particles=4)
    batches = list(rws_jax.minibatches(jax.random.key(3), 3, x, epochs=1))
    state = init(jax.random.key(0), *batches[0])
    first = jax.tree.map(jnp.array, state.phi)
    state, _ = rws_jax.fit(step, state, 3, batches=batches, progress_bar=False)
    assert state.step == 3
    assert len(is_moved(first, state.phi)) > 5


def test_first_weights_are_the_same_compiled_and_traced_without_numbers():
    case, guide, _ = small()
    init = rws_jax.make_step(case.model, guide, phi_optimizer=ADAM).init
    plain = init(jax.random.key(0), *case.args)
    compiled_one = jax.jit(init)(jax.random.key(0), *case.args)
    chex.assert_trees_all_close(plain.phi, compiled_one.phi, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(plain, jax.eval_shape(init, jax.random.key(0), *case.args))


@pytest.mark.slow
def test_seeds_side_by_side_are_those_one_by_one():
    case, guide, _ = small()
    rws = rws_jax.make_step(case.model, guide, phi_optimizer=ADAM, insomnia=0.0, num_sleep_particles=3)
    x = jnp.asarray(case.args[0])
    run = lambda rng_key: rws.step(rws.init(rng_key, x), x)[0].phi
    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.vmap(run)(keys)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], both), run(keys[1]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", rows(sorted(CASES.keys() - {"branching"}), fast={"repeated"}))
def test_numpyro_finds_nothing_to_complain_of(name):
    """Shapes, supports and parameters of proposals, as NumPyro validates them."""
    case = CASES[name]()
    guide = rws_jax.compile_guide(case.model, **SMALL)
    with numpyro.validation_enabled():
        params = {**case.theta, **weights_of(guide, *case.args)}
        found = rws_jax.importance_sample(jax.random.key(1), params, case.model, guide, *case.args, num_particles=3)
        assert jnp.all(jnp.isfinite(found.log_weights))
