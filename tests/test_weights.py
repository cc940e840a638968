"""Array functions against numbers worked out by hand, and at the edges of float32."""

import jax
import jax.numpy as jnp
import pytest

from rws_jax import weights

INF = jnp.inf
# Three particles, three units: weights (3, 2, 1), one of them dead, all of them dead.
LOG_W = jnp.stack([jnp.log(jnp.array([3.0, 2.0, 1.0])), jnp.array([0.0, -INF, 0.0]), jnp.full(3, -INF)], axis=1)


def test_bound_by_hand():
    assert jnp.allclose(weights.bound(LOG_W), jnp.log(jnp.array([2.0, 2.0 / 3.0, 0.0])))


def test_normalised_weights_by_hand():
    expected = jnp.array([[3.0, 3.0, 0.0], [2.0, 0.0, 0.0], [1.0, 3.0, 0.0]]) / 6.0
    assert jnp.allclose(weights.normalise(LOG_W), expected)


def test_effective_sample_size_by_hand():
    assert jnp.allclose(weights.effective_sample_size(LOG_W), jnp.array([36.0 / 14.0, 2.0, 0.0]))


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


def test_one_dominating_weight_takes_all():
    log_w = jnp.array([[0.0], [-2000.0], [-1e30]])
    assert weights.effective_sample_size(log_w) == 1.0
    assert weights.normalise(log_w).ravel().tolist() == [1.0, 0.0, 0.0]
    assert jnp.allclose(weights.bound(log_w), -jnp.log(3.0))
