"""Proposals as pytrees, beside their priors in the package's checks, and of priors whose bounds are traced."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax

from rws_jax.checks.supports import warn_of_narrower
from rws_jax.core.draws import may_round, moved_inside
from rws_jax.core.sites import with_batch_shape
from rws_jax.core.supports import covers, elementwise, in_support
from rws_jax.guides.proposals.family import family_of

PRIORS = {
    "boolean": dist.Bernoulli(0.3),
    "categories": dist.Categorical(jnp.array([0.2, 0.3, 0.5])),
    "dependent": dist.Bernoulli(jnp.array([0.3, 0.5])).to_event(1),
    "counts": dist.Poisson(3.0),
    "real": dist.Normal(1.0, 2.0),
    "positive": dist.Gamma(3.0, 1.0),
    "interval": dist.Uniform(-1.0, 2.0),
    "simplex": dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])),
    "circular": dist.VonMises(1.0, 2.0),
    "transformed": dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(1.0, 2.0)),
}


def with_slow(names, *fast):
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


def proposal_of(fn, seed=0):
    family = family_of(fn, 2)
    outputs = 0.5 * jax.random.normal(jax.random.key(seed), (*fn.batch_shape, family.size))
    return family, outputs, family.proposal(fn, outputs)


@pytest.mark.parametrize("name", with_slow(PRIORS, "dependent", "interval", "transformed"))
def test_they_are_pytrees(name):
    fn = PRIORS[name]
    family, outputs, q = proposal_of(fn)
    value = q.sample(jax.random.key(1))
    leaves, structure = jax.tree.flatten(q)
    again = jax.tree.unflatten(structure, leaves)
    assert type(again.support) is type(q.support)

    @jax.jit
    def run(q, outputs, value):
        make = lambda outputs: family.proposal(fn, outputs)
        last, stacked = lax.scan(lambda q, o: (make(o), q), q, outputs[None])
        vmapped = jax.vmap(make)(outputs[None])
        whole = with_batch_shape(vmapped)
        log_probs = [x.log_prob(value) for x in (q, last)]
        log_probs += [jax.vmap(lambda q: q.log_prob(value))(x)[0] for x in (stacked, vmapped)]
        return make(outputs), jnp.stack(log_probs), whole.sample(jax.random.key(0))

    made, log_probs, drawn = run(q, outputs, value)
    expected = q.log_prob(value)
    np.testing.assert_allclose(again.log_prob(value), expected, rtol=1e-6)
    np.testing.assert_allclose(made.log_prob(value), expected, rtol=1e-5)
    np.testing.assert_allclose(log_probs, jnp.full(4, expected), rtol=1e-5)
    assert drawn.shape == (1, *fn.shape())


@pytest.mark.parametrize("name", with_slow(PRIORS, "categories", "counts", "positive"))
def test_they_stand_beside_their_priors(name, allow_rank_promotion):  # as NumPyro's own do, of expanded ones
    fn = PRIORS[name]
    q = proposal_of(fn)[2]
    with warnings.catch_warnings(), numpyro.validation_enabled():
        warnings.simplefilter("error")
        warn_of_narrower("z", q, fn)
        value = q.sample(jax.random.key(1))
        log_prob = q.log_prob(value)
        wide = q.expand((4,))
        drawn = wide.sample(jax.random.key(2))
        event = wide.to_event(1)
        masked = wide.mask(jnp.array([True, False, True, True]))
        assert event.log_prob(drawn).shape == ()
        np.testing.assert_allclose(event.log_prob(drawn), wide.log_prob(drawn).sum(), rtol=1e-5)
        assert masked.log_prob(drawn)[1] == 0.0
    assert jnp.isfinite(log_prob)
    assert covers(elementwise(q), elementwise(fn), bounds_count=True)
    assert covers(elementwise(fn), elementwise(q), bounds_count=True)
    inside = in_support(fn, value, q)
    assert inside is None or np.all(inside)
    assert with_batch_shape(q) is q
    if may_round(q):
        assert jnp.array_equal(moved_inside(q, value), value)


TRACED = {
    "uniform": lambda x: dist.Uniform(0.0, jnp.exp(x)),
    "binomial": lambda x: dist.Binomial(jnp.asarray(5 + jnp.round(x), int), 0.4),
    "integers": lambda x: dist.DiscreteUniform(0, jnp.asarray(5 + jnp.round(x), int)),
    "categorical": lambda x: dist.Categorical(logits=jnp.stack([x, 0.0 * x, 1.0 + 0.0 * x], -1)),
    "gamma": lambda x: dist.Gamma(jnp.exp(x), 1.0),
}


@pytest.mark.parametrize("name", with_slow(TRACED, "uniform", "binomial"))
def test_bounds_that_are_traced(name):
    """A proposal is made as it is where bounds are known, and each element depends on its own outputs alone."""
    make = TRACED[name]

    @jax.jit
    def run(x, key):
        fn = make(x)
        family = family_of(fn, 2)
        outputs = 0.5 * jax.random.normal(key, (3, family.size))
        q = family.proposal(fn, outputs)
        value = jax.vmap(q.sample)(jax.random.split(key, 100))
        log_q = lambda outputs: family.proposal(fn, outputs).log_prob(value[0])
        inside, log_probs = jax.vmap(fn.support)(value), jax.vmap(q.log_prob)(value)
        return inside, log_probs, jax.jacobian(log_q)(outputs), jax.grad(lambda x: log_prob(make(x), key))(x)

    def log_prob(fn, key):
        family = family_of(fn, 2)
        q = family.proposal(fn, jnp.full((3, family.size), 0.1))
        return q.log_prob(lax.stop_gradient(q.sample(key))).sum() + family.prior_features(fn).sum()

    with jax.debug_key_reuse(False):
        inside, log_q, jacobian, owned = run(jnp.array([0.0, 1.0, 2.0]), jax.random.key(0))
    assert jnp.all(inside)
    assert jnp.all(jnp.isfinite(log_q))
    others = jacobian[~np.eye(3, dtype=bool)]
    assert jnp.all(others == 0.0)
    assert jnp.all(jnp.isfinite(jacobian))
    assert jnp.any(jacobian != 0.0)
    assert jnp.all(owned == 0.0)
