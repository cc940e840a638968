"""Proposals on supports of all kinds: densities that normalise, and draws that lie inside and follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to

from rws_jax.guides.proposals.family import family_of


def on(support, *shape):
    """A distribution whose support is the codomain of the bijection to `support`."""
    base = dist.Normal(jnp.zeros(shape), 1.0).to_event(len(shape))
    return dist.TransformedDistribution(base, biject_to(support))


COVARIANCE = jnp.array([[2.0, 0.9], [0.9, 1.0]])
FACTOR = 0.05 * jnp.tril(jnp.ones((20, 20))) + jnp.eye(20)
PRIORS = {
    "simplex": dist.Dirichlet(jnp.array([0.5, 2.0, 3.0])),
    "ordered": on(constraints.ordered_vector, 3),
    "positive ordered": on(constraints.positive_ordered_vector, 2),
    "Cholesky": on(constraints.lower_cholesky, 6),
    "Cholesky of correlation": dist.LKJCholesky(3, 2.0),
    "correlation": dist.LKJ(3, 2.0),
    "covariance": dist.Wishart(5.0, scale_matrix=COVARIANCE),
    "2 normal": dist.MultivariateNormal(jnp.array([1.0, -1.0]), COVARIANCE),
    "20 normal": dist.MultivariateNormal(jnp.zeros(20), scale_tril=FACTOR),
    "greater than": dist.TransformedDistribution(
        dist.Gamma(2.0, 1.0), dist.transforms.AffineTransform(3.0, 2.0, domain=constraints.positive)
    ),
    "less than": dist.RightTruncatedDistribution(dist.Normal(0.0, 1.0), high=1.0),
    "interval": dist.Uniform(-2.0, 5.0),
    "truncated": dist.TruncatedNormal(0.5, 1.0, low=-1.0, high=2.0),
    "half truncated": dist.TruncatedNormal(0.5, 1.0, low=-1.0),
    "zero sum": dist.ZeroSumNormal(1.5, (4,)),
    "l1 ball": on(constraints.l1_ball, 3),
    "matrices": dist.MatrixNormal(jnp.zeros((2, 3)), jnp.eye(2), jnp.eye(3)),
    "positives": dist.Gamma(jnp.array([2.0, 0.5, 3.0]), 1.0).to_event(1),
    "batches of simplices": dist.Dirichlet(jnp.array([[1.0, 2.0, 3.0], [0.7, 0.7, 0.7]])).to_event(1),
    "angles": dist.VonMises(jnp.array([0.0, 2.0]), 3.0).to_event(1),
}


FAST = "simplex", "positive ordered", "zero sum"


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in PRIORS])
def test_densities_normalise_and_draws_follow_them(name):
    """E_q[p / q] = 1, and E_p[min(q / p, 4)] = E_q[min(1, 4 p / q)], within 5 standard errors; p / q is bounded."""
    fn = PRIORS[name]
    family = family_of(fn, 3)
    outputs = 0.3 * jax.random.normal(jax.random.key(0), (family.size,))
    num = 4000

    @jax.jit
    def run(outputs, key):
        keys = jax.random.split(key, 2)
        q = family.proposal(fn, outputs)
        # One by one, as NumPyro's own distributions promote ranks where there are more.
        draws = [jax.vmap(of.sample)(jax.random.split(key, num)) for of, key in zip((q, fn), keys, strict=True)]
        log_p, log_q = ([jax.vmap(of.log_prob)(z) for z in draws] for of in (fn, q))
        zero = jax.vmap(family.proposal(fn, 0.0 * outputs).log_prob)(draws[1])
        return draws[0], jnp.exp(log_p[0] - log_q[0]), jnp.exp(log_q[1] - log_p[1]), zero - log_p[1]

    draws, of_q, of_p, to_prior = (np.asarray(x) for x in run(outputs, jax.random.key(1)))
    error = lambda x: 5.0 * x.std() / np.sqrt(num)
    assert 0.0 < error(of_q) < 0.1
    assert abs(of_q.mean() - 1.0) < error(of_q)
    found, expected = np.minimum(of_p, 4.0), np.minimum(4.0 * of_q, 1.0)
    assert abs(found.mean() - expected.mean()) < np.hypot(error(found), error(expected))
    assert np.all(fn.support(jnp.asarray(draws)))
    assert np.all(to_prior > np.log(0.75) - 1e-4)


BORDERS = {
    "Gamma": (dist.Gamma(0.02, 1.0), lambda z: z),
    "Beta": (dist.Beta(0.01, 0.01), lambda z: z),
    "Dirichlet": (dist.Dirichlet(jnp.full(3, 0.01)), lambda z: z),
    "Uniform": (dist.Uniform(0.0, 1.0), lambda z: jnp.round(z)),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "Dirichlet" else pytest.mark.slow) for n in BORDERS])
def test_gradients_are_finite_on_borders(name):
    fn, moved = BORDERS[name]
    family = family_of(fn, 3)
    outputs = 0.3 * jax.random.normal(jax.random.key(0), (family.size,))

    @jax.jit
    def run(outputs, key):
        draws = jax.vmap(family.proposal(fn, outputs).sample)(jax.random.split(key, 500))
        log_q = lambda outputs, z: family.proposal(fn, outputs).log_prob(z)
        to_outputs, to_value = jax.vmap(jax.grad(log_q, (0, 1)), (None, 0))(outputs, draws)
        on_border = jax.vmap(jax.grad(log_q), (None, 0))(outputs, moved(draws))
        return draws, to_outputs, to_value, on_border, jax.vmap(family.features, (None, 0))(fn, moved(draws))

    draws, to_outputs, to_value, on_border, features = run(outputs, jax.random.key(1))
    assert jnp.all(fn.support(draws))
    for number in (to_outputs, on_border, features):
        assert jnp.all(jnp.isfinite(number))
    assert jnp.all(jnp.isfinite(to_value))
