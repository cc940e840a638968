"""Log densities that are written out here, against NumPyro's."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from rws_jax.core.log_probs import exact


def outcomes(make, value):
    """Log densities, their gradient, and a product with the Hessian, as functions of logits."""

    def of(logits):
        total = lambda logits: jnp.sum(jnp.sin(make(logits).log_prob(value)))  # with a different weight for each
        product = jax.jvp(jax.grad(total), (logits,), (jnp.cos(logits),))
        return make(logits).log_prob(value), *product

    return jax.jit(of)


@pytest.mark.floors
@pytest.mark.parametrize(
    ("num", "batch_shape", "shape"),
    [(3, (4,), (4,)), (20, (), (2, 3)), (1, (2, 3), ()), (8, (2, 1), (2, 4)), (9, (3,), (2, 3))],
    ids=str,
)
@pytest.mark.usefixtures("allow_rank_promotion")  # NumPyro's own density needs it
def test_the_density_of_a_category_is_the_one_of_numpyro(num, batch_shape, shape):
    keys = jax.random.split(jax.random.key(num))
    logits = 3.0 * jax.random.normal(keys[0], (*batch_shape, num))
    value = jax.random.randint(keys[1], shape, 0, num)
    found = outcomes(lambda logits: exact(dist.Categorical(logits=logits)), value)(logits)
    for ours, theirs in zip(
        found, outcomes(lambda logits: dist.Categorical(logits=logits), value)(logits), strict=True
    ):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("num", [4, 20])
def test_impossible_categories_have_no_share_in_value_or_gradient(num):
    logits = jnp.full(num, -jnp.inf).at[1:3].set(jnp.array([1e4, 1e4 + 1.0]))
    of = lambda logits, value: exact(dist.Categorical(logits=logits, validate_args=False)).log_prob(jnp.array(value))
    value, grad = jax.value_and_grad(of)(logits, 2)
    share = jax.nn.sigmoid(1.0)
    np.testing.assert_allclose(value, jnp.log(share), rtol=1e-3)
    np.testing.assert_allclose(grad, jnp.zeros(num).at[1:3].set(jnp.array([share - 1.0, 1.0 - share])), atol=1e-3)
    assert of(logits, 0) == -jnp.inf


def test_the_gradient_of_few_categories_needs_no_scatter_and_no_reduction_of_exponentials():
    """A reduction along an axis of four, or a scatter, takes longer in XLA on CPU than all the arithmetic."""
    log_prob = lambda logits: jnp.sum(exact(dist.Categorical(logits=logits)).log_prob(jnp.zeros((5, 6), int)))
    used = str(jax.make_jaxpr(jax.grad(log_prob))(jnp.zeros((5, 6, 4))))
    assert "exp" in used
    assert not any(word in used for word in ("scatter", "reduce_max"))
