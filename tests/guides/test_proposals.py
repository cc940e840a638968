"""Proposals by support: densities that normalise, draws that follow them, and outputs that all have a gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from rws_jax.guides.proposals.family import family_of, why_none

GRID = jnp.linspace(-30.0, 30.0, 20_001)
PRIORS = [
    pytest.param(dist.Bernoulli(0.3), jnp.arange(2), id="boolean"),
    pytest.param(dist.Categorical(jnp.array([0.2, 0.0, 0.8])), jnp.arange(3), id="categories"),
    pytest.param(dist.DiscreteUniform(2, 5), jnp.arange(2, 6), id="integers"),
    pytest.param(dist.Poisson(3.0), jnp.arange(400), id="counts"),
    pytest.param(dist.DiscreteUniform(-50, 50), jnp.arange(-50, 51), id="many"),
    pytest.param(dist.Normal(1.0, 2.0), GRID, id="real"),
    pytest.param(dist.Gamma(3.0, 1.0), jnp.exp(GRID), id="positive"),
    pytest.param(dist.Beta(2.0, 3.0), jax.nn.sigmoid(GRID / 3.0), id="interval"),
    pytest.param(dist.VonMises(1.0, 2.0), jnp.linspace(-jnp.pi, jnp.pi, 20_001), id="circular"),
]


def proposal_of(fn, scale=0.5, seed=0):
    family = family_of(fn, 3)
    outputs = scale * jax.random.normal(jax.random.key(seed), (*fn.batch_shape, family.size))
    return family, outputs, family.proposal(fn, outputs)


@pytest.mark.parametrize(("fn", "values"), PRIORS)
def test_densities_normalise(fn, values):
    q = proposal_of(fn)[2]
    probs = np.exp(np.asarray(jax.jit(jax.vmap(q.log_prob))(values), float))
    total = probs.sum() if fn.is_discrete else np.trapezoid(probs, np.asarray(values, float))
    assert abs(total - 1.0) < 1e-3
    assert type(q.support) is type(fn.support)


@pytest.mark.parametrize(("fn", "values"), PRIORS)
def test_zero_outputs_give_about_the_prior_and_all_have_a_gradient(fn, values):
    family, outputs, _ = proposal_of(fn)
    draws = jax.vmap(lambda key: fn.sample(key))(jax.random.split(jax.random.key(1), 200))

    @jax.jit
    def both(outputs):
        log_q = lambda outputs, z: family.proposal(fn, outputs).log_prob(z)
        grads = jax.vmap(jax.grad(log_q), in_axes=(None, 0))(outputs, draws)
        return jax.vmap(lambda z: log_q(0.0 * outputs, z) - fn.log_prob(z))(draws), grads

    ratio, grads = both(outputs)
    assert jnp.all(ratio > -np.log(4.0 / 3.0) - 1e-4)
    assert jnp.all(jnp.isfinite(grads))
    impossible = [1] if family.size == 3 and fn.is_discrete else []
    assert set(np.flatnonzero(~np.any(np.asarray(grads) != 0.0, axis=0))) <= set(impossible)


@pytest.mark.parametrize(("fn", "values"), PRIORS)
def test_draws_follow_the_density(fn, values):
    """Means of a bounded function of draws within 5 standard errors, at one seed."""
    q = proposal_of(fn)[2]
    num = 20_000
    draws = jax.jit(lambda key: q.sample(key, (num,)))(jax.random.key(2))
    assert draws.dtype == jnp.asarray(fn.sample(jax.random.key(0))).dtype
    probs = np.exp(np.asarray(jax.jit(jax.vmap(q.log_prob))(values), float))
    for of in (lambda x: np.tanh(x - 1.0), lambda x: np.cos(x)):
        known = np.asarray(values, float)
        expected = (probs * of(known)).sum() if fn.is_discrete else np.trapezoid(probs * of(known), known)
        found = of(np.asarray(draws, float))
        assert abs(found.mean() - expected) < 5.0 * found.std() / np.sqrt(num) + 2e-4


@pytest.mark.parametrize(
    "fn", [dist.Bernoulli(0.3), dist.Categorical(jnp.array([0.2, 0.3, 0.5]))], ids=["two", "three"]
)
def test_elements_of_a_discrete_event_depend_on_those_before(fn):
    fn = fn.expand((3,)).to_event(1)
    q = proposal_of(fn, 1.0)[2]
    num_values = q.logits.shape[-1]
    table = jnp.array(list(itertools.product(range(num_values), repeat=3)))
    probs = np.exp(np.asarray(jax.jit(jax.vmap(q.log_prob))(table), float))
    assert abs(probs.sum() - 1.0) < 1e-5
    draws = np.asarray(jax.jit(jax.vmap(q.sample))(jax.random.split(jax.random.key(3), 20_000)))
    found = np.bincount(draws @ num_values ** np.array([2, 1, 0]), minlength=len(probs)) / len(draws)
    assert np.all(np.abs(found - probs) < 5.0 * np.sqrt(probs / len(draws)) + 1e-4)


def test_elements_of_a_real_event_depend_on_those_before():
    fn = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    q = proposal_of(fn, 1.0)[2]
    grid = jnp.linspace(-25.0, 25.0, 401)
    plane = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    probs = np.exp(np.asarray(jax.jit(jax.vmap(q.log_prob))(plane), float)) * float(grid[1] - grid[0]) ** 2
    assert abs(probs.sum() - 1.0) < 1e-2
    draws = np.asarray(jax.jit(jax.vmap(q.sample))(jax.random.split(jax.random.key(3), 20_000)))
    products = np.sin(draws[:, 0]) * np.sin(draws[:, 1])
    expected = (probs * np.prod(np.sin(np.asarray(plane)), axis=1)).sum()
    assert abs(products.mean() - expected) < 5.0 * products.std() / np.sqrt(len(draws)) + 1e-3


def test_what_has_no_proposal_says_why():
    assert family_of(dist.Delta(0.0), 3) is None
    assert "Delta" in why_none(dist.Delta(0.0))
    assert "Multinomial" in why_none(dist.Multinomial(3, jnp.ones(2) / 2))
    assert why_none(dist.Normal(0.0, 1.0)) is None


def test_no_gradient_reaches_the_prior():
    def log_q(loc):
        fn = dist.Normal(loc, 1.0)
        family = family_of(fn, 3)
        return family.proposal(fn, jnp.full(family.size, 0.1)).log_prob(0.7) + family.prior_features(fn).sum()

    assert jax.grad(log_q)(0.3) == 0.0


DISCRETE = [
    pytest.param(dist.Bernoulli(0.3).expand((8,)), id="8 of two"),
    pytest.param(dist.Bernoulli(0.3).expand((16,)), id="16 of two"),
    pytest.param(dist.Categorical(jnp.array([0.2, 0.3, 0.5])).expand((4,)), id="4 of three"),
]


@pytest.mark.parametrize("fn", DISCRETE)
def test_compiled_draws_of_a_discrete_event(fn):
    """Those of XLA's machine code are the ones drawn step by step; with 5 standard errors for all pairs of elements."""
    q = proposal_of(fn.to_event(1), 1.0)[2]
    num, num_values = 20_000, len(q.values)
    draws = np.asarray(jax.jit(lambda key: q.sample(key, (num,)))(jax.random.key(3)))
    assert np.array_equal(draws, q.sample(jax.random.key(3), (num,)))
    table = np.array(list(itertools.product(range(num_values), repeat=fn.batch_shape[0])))
    probs = np.exp(np.asarray(jax.jit(q.log_prob)(jnp.asarray(table)), float))
    assert abs(probs.sum() - 1.0) < 1e-5
    found, known = (np.eye(num_values)[x].reshape(len(x), -1) for x in (draws, table))
    found, known = found.T @ found / num, (known.T * probs) @ known
    assert np.all(np.abs(found - known) < 5.0 * np.sqrt(known / num) + 1e-4)


def test_many_categories_have_no_order():
    """Each has a logit of its own, up to 1,024; integers as many are proposed by their size."""
    for num, size in ((100, 100), (1024, 1024)):
        assert family_of(dist.Categorical(jnp.ones(num) / num), 3).size == size
        assert family_of(dist.DiscreteUniform(0, num - 1), 3).size < 20
    assert "Categorical" in why_none(dist.Categorical(jnp.ones(1025) / 1025))
