"""Array functions against numbers worked out by hand, and at the edges of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rws_jax.estimators import weights

INF = jnp.inf
# Three particles, three units: weights (3, 2, 1), one of them dead, all of them dead.
LOG_W = jnp.stack([jnp.log(jnp.array([3.0, 2.0, 1.0])), jnp.array([0.0, -INF, 0.0]), jnp.full(3, -INF)], axis=1)


def test_bound_by_hand():
    assert jnp.allclose(weights.bound(LOG_W), jnp.log(jnp.array([2.0, 2.0 / 3.0, 0.0])))


def test_normalised_weights_by_hand():
    expected = jnp.array([[3.0, 3.0, 0.0], [2.0, 0.0, 0.0], [1.0, 3.0, 0.0]]) / 6.0
    assert jnp.allclose(weights.normalise(LOG_W), expected)


def test_effective_sample_size_by_hand():
    assert jnp.allclose(weights.summarise(LOG_W).effective_sample_size, jnp.array([36.0 / 14.0, 2.0, 0.0]))


def test_alive():
    assert weights.alive(LOG_W).tolist() == [True, True, False]


def test_log_weights_are_dead_where_either_density_is_zero():
    log_p, log_q = jnp.array([0.5, -INF, 0.5, -INF]), jnp.array([0.2, 0.2, -INF, -INF])
    assert weights.log_weights(log_p, log_q).tolist() == pytest.approx([0.3, -INF, -INF, -INF])


def test_gradients_through_dead_particles_and_units_are_exactly_zero():
    grad = jax.grad(lambda w: jnp.sum(jnp.where(weights.alive(w), weights.bound(w), 0.0)))(LOG_W)
    assert jnp.allclose(grad, weights.normalise(LOG_W))
    assert jnp.all(grad[1:2, 1] == 0.0)
    assert jnp.all(grad[:, 2] == 0.0)
    log_p = jnp.array([[0.5], [-INF]])
    grads = jax.grad(lambda p, q: weights.bound(weights.log_weights(p, q)).sum(), argnums=(0, 1))(log_p, log_p)
    assert grads[0].ravel().tolist() == [1.0, 0.0]
    assert grads[1].ravel().tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4, 3e38])
def test_a_common_shift_moves_the_bound_and_nothing_else(shift):
    log_w = jnp.array([[1.0], [0.0], [-2.0]])
    shifted = log_w + shift
    assert jnp.allclose(weights.normalise(shifted), jax.nn.softmax(shifted, axis=0))
    assert jnp.isfinite(weights.bound(shifted)).all()
    assert jnp.allclose(weights.bound(shifted), weights.bound(shifted - shifted[:1]) + shifted[0], rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, INF])
def test_a_wrong_weight_is_passed_on_and_not_hidden(bad):
    """In its own unit; the others are not touched."""
    log_w = LOG_W.at[0, 0].set(bad)
    assert not jnp.isfinite(weights.bound(log_w)[0])
    assert jnp.isnan(weights.normalise(log_w)[:, 0]).any()
    assert weights.bound(log_w)[1] == weights.bound(LOG_W)[1]


@pytest.mark.parametrize("rest", [-jnp.inf, -2.0])
def test_one_nan_among_many_particles_and_units_is_not_lost(rest):
    log_w = jnp.full((50, 128), rest).at[17, 3].set(jnp.nan)
    live, bounds, w = jax.jit(lambda x: (weights.alive(x), weights.bound(x), weights.normalise(x)))(log_w)
    assert bool(live[3] & jnp.isnan(bounds[3]) & jnp.isnan(w[:, 3]).any())
    assert (live.sum(), jnp.isnan(bounds).sum()) == ((1, 1) if rest == -jnp.inf else (128, 1))


def test_one_dominating_weight_takes_all():
    log_w = jnp.array([[0.0], [-2000.0], [-1e30]])
    assert weights.summarise(log_w).effective_sample_size == 1.0
    assert weights.normalise(log_w).ravel().tolist() == [1.0, 0.0, 0.0]
    assert jnp.allclose(weights.bound(log_w), -jnp.log(3.0))


# Properties, on arrays that hypothesis makes up

HUGE = 2.0**100  # near the end of float32


def log_weight_arrays(limit):
    """Up to five particles of one or two units, some of them dead."""
    numbers = st.floats(-limit, limit, width=32) | st.floats(-32.0, 32.0, width=32) | st.just(-np.inf)
    return hnp.arrays(np.float32, st.tuples(st.sampled_from([1, 2, 5]), st.sampled_from([1, 2])), elements=numbers)


ARRAYS = log_weight_arrays(HUGE)
bound_of, normalise, alive = jax.jit(weights.bound), jax.jit(weights.normalise), jax.jit(weights.alive)
effective_sample_size = jax.jit(lambda log_w: weights.summarise(log_w).effective_sample_size)
score_baseline = jax.jit(weights.score_baseline)
log_mixture = jax.jit(weights.log_mixture)
gradient_of_bounds = jax.jit(
    jax.grad(lambda log_w: jnp.sum(jnp.where(weights.alive(log_w), weights.bound(log_w), 0.0)))
)
property_test = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def exact(log_w):
    """Bound, weights and effective sample sizes in double precision, by numpy."""
    log_w = np.asarray(log_w, np.float64)
    top = np.max(log_w, axis=0)
    safe = np.where(np.isfinite(top), top, 0.0)
    scaled = np.exp(log_w - safe)
    total = scaled.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        w = np.where(total > 0, scaled / total, 0.0)
        ess = np.where(total > 0, 1.0 / np.sum(w**2, axis=0), 0.0)
        return np.log(total) + safe - np.log(len(log_w)), w, ess


@property_test
@given(ARRAYS)
def test_results_are_those_of_double_precision(log_w):
    bound, w, ess = exact(log_w)
    np.testing.assert_allclose(bound_of(log_w), bound, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(normalise(log_w), w, atol=1e-5)
    np.testing.assert_allclose(effective_sample_size(log_w), ess, rtol=1e-4)
    np.testing.assert_array_equal(alive(log_w), ess > 0)


@property_test
@given(log_weight_arrays(64.0), st.floats(-1024.0, 1024.0, width=32))
def test_a_shift_moves_the_bound_and_leaves_the_weights(log_w, shift):
    shifted = log_w + np.float32(shift)
    live = np.asarray(alive(log_w))
    moved = np.asarray(bound_of(shifted))[live] - np.asarray(bound_of(log_w))[live]
    np.testing.assert_allclose(moved, shift, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(normalise(shifted), normalise(log_w), atol=1e-3)


@property_test
@given(ARRAYS)
def test_gradients_are_finite_and_zero_where_a_particle_is_dead(log_w):
    """The gradient of the bound is the weight itself."""
    grad = np.asarray(gradient_of_bounds(log_w))
    np.testing.assert_allclose(grad, normalise(log_w), atol=1e-5)
    assert np.all(grad[log_w == -np.inf] == 0.0)


@property_test
@given(ARRAYS, st.integers(0, 5), st.sampled_from([np.nan, np.inf]))
def test_nan_and_infinity_are_passed_on_in_their_unit_alone(log_w, where, bad):
    spoilt = log_w.copy()
    spoilt[where % len(log_w), 0] = bad
    assert not np.isfinite(bound_of(spoilt)[0])
    assert np.any(np.isnan(normalise(spoilt)[:, 0]))
    np.testing.assert_array_equal(bound_of(spoilt)[1:], bound_of(log_w)[1:])
    np.testing.assert_array_equal(normalise(spoilt)[:, 1:], normalise(log_w)[:, 1:])


@property_test
@given(st.floats(-HUGE, HUGE, width=32))
def test_one_particle_is_its_own_bound(log_w):
    log_w = jnp.array([[log_w]], jnp.float32)
    assert bound_of(log_w) == log_w[0]
    assert normalise(log_w) == 1.0
    assert effective_sample_size(log_w) == 1.0


@property_test
@given(log_weight_arrays(2.0**20))
def test_a_weight_above_all_others_takes_all(log_w):
    log_w = np.concatenate([np.full((1, log_w.shape[1]), 2e6, np.float32), log_w])
    np.testing.assert_array_equal(normalise(log_w)[0], 1.0)
    np.testing.assert_array_equal(effective_sample_size(log_w), 1.0)
    np.testing.assert_allclose(bound_of(log_w), 2e6 - np.log(len(log_w)), rtol=1e-6)


@property_test
@given(ARRAYS, st.floats(0.01, 0.99))
def test_a_mixture_is_one_of_densities(log_q, delta):
    log_u = np.roll(log_q, 1, axis=0)
    a, b = log_q.astype(np.float64) + np.log1p(-delta), log_u.astype(np.float64) + np.log(delta)
    np.testing.assert_allclose(log_mixture(log_q, log_u, delta), np.logaddexp(a, b), rtol=1e-4, atol=1e-4)


@property_test
@given(ARRAYS)
def test_the_baseline_of_a_particle_depends_on_the_others_alone(log_w):
    """1/K where another particle is alive, whatever becomes of this one; so its term has expectation zero."""
    baseline = np.asarray(score_baseline(log_w, jnp.zeros(log_w.shape)))
    for k in range(len(log_w)):
        others_alive = np.any(np.delete(log_w, k, axis=0) != -np.inf, axis=0)
        np.testing.assert_allclose(baseline[k], others_alive / len(log_w), rtol=1e-6)
        changed = log_w.copy()
        changed[k] = -np.inf
        np.testing.assert_array_equal(score_baseline(changed, jnp.zeros(log_w.shape))[k], baseline[k])
