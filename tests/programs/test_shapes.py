"""Latents whose shape is not that of a plate: of `sample_shape`, and of distributions made by `jax.vmap`."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed

import rws_jax
from rws_jax.core.sites import with_batch_shape

X = jnp.array([0.5, -1.0, 2.0])
LOG_EVIDENCE = float(jnp.sum(dist.Normal(0.0, 2.0**0.5).log_prob(X)))  # z ~ N(0, 1), x ~ N(z, 1), three times


def by_sample_shape(loc):
    return dist.Normal(loc, 1.0), {"sample_shape": (3,)}


def by_vmap(loc):
    return jax.vmap(dist.Normal)(jnp.full(3, loc), jnp.ones(3)), {}


def by_arrays(loc):
    return dist.Normal(jnp.full(3, loc), 1.0), {}


@pytest.mark.parametrize("model_by", [by_sample_shape, by_vmap, by_arrays])
@pytest.mark.parametrize("guide_by", [by_sample_shape, by_vmap])
def test_the_bound_and_the_gradients_are_exact(model_by, guide_by):
    """With the posterior N(x / 2, 1/2) as far as one shift can be: a guide N(a, 1) of three independent elements."""
    num = 20_000

    def model(x):
        fn, kwargs = model_by(0.0)
        z = numpyro.sample("z", fn, **kwargs)
        numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        fn, kwargs = guide_by(numpyro.param("a", 0.0))
        numpyro.sample("z", fn, **kwargs)

    @jax.jit
    def losses(a):
        programs = seed(model, jax.random.key(0)), seed(guide, jax.random.key(1))
        wake = lambda a: rws_jax.wake_phi_loss({}, {"a": a}, *programs, X, num_particles=num)
        sleep = lambda a: rws_jax.sleep_phi_loss({}, {"a": a}, *programs, X, num_particles=num)
        bound = -rws_jax.wake_theta_loss({}, {"a": a}, *programs, X, num_particles=num)
        return bound, jax.grad(wake)(a), jax.value_and_grad(sleep)(a)

    bound, wake_gradient, (sleep_loss, sleep_gradient) = losses(jnp.array(0.3))
    assert jnp.abs(bound - LOG_EVIDENCE) < 0.1
    assert jnp.abs(wake_gradient - (3 * 0.3 - X.sum() / 2)) < 0.15  # sum of a - E[z | x]
    # E[-log q] of three standard normals, each with variance 1/2: 5 standard errors.
    assert jnp.abs(sleep_loss - 3 * (0.5 * jnp.log(2 * jnp.pi) + 0.5 * (1 + 0.3**2))) < 5 * (3 * 0.6 / num) ** 0.5
    assert jnp.abs(sleep_gradient - 3 * 0.3) < 5 * (3 / num) ** 0.5


def test_shapes_that_differ_are_told_with_the_sample_shape():
    model = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0), sample_shape=(3,))
    guide = lambda: numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0), 1.0), sample_shape=(2,))
    with pytest.raises(ValueError, match="shapes differ at latent site 'z'") as error:
        rws_jax.make_step(model, guide).init(jax.random.key(0))
    assert "(3,), its shape in the model" in str(error.value)
    assert "(2,), as drawn" in str(error.value)


VMAPPED = {
    "normal": (dist.Normal, (jnp.zeros(3), jnp.ones(3)), (3,)),
    "log-normal": (dist.LogNormal, (jnp.zeros(3), jnp.ones(3)), (3,)),
    "gamma": (dist.Gamma, (jnp.ones(3), jnp.ones(3)), (3,)),
    "uniform": (dist.Uniform, (jnp.zeros(3), jnp.ones(3)), (3,)),
    "vectors": (lambda loc: dist.MultivariateNormal(loc, jnp.eye(2)), (jnp.zeros((3, 2)),), (3, 2)),
    "simplex": (dist.Dirichlet, (jnp.ones((3, 4)),), (3, 4)),
    "events": (lambda loc: dist.Normal(loc, 1.0).to_event(1), (jnp.zeros((3, 2)),), (3, 2)),
    "masked": (lambda loc: dist.Normal(loc, 1.0).mask(True), (jnp.zeros(3),), (3,)),
    "twice": (jax.vmap(lambda loc: dist.Normal(loc, 1.0)), (jnp.zeros((3, 2)),), (3, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VMAPPED)
def test_distributions_made_by_vmap_draw_different_numbers(name):
    make, args, shape = VMAPPED[name]
    fn = with_batch_shape(jax.vmap(make)(*args))
    draw = fn.sample(jax.random.key(0))
    assert fn.shape() == draw.shape == shape
    assert len(jnp.unique(draw[..., 0] if fn.event_dim else draw)) == (3 if fn.event_dim else draw.size)
    for made in (fn, fn.to_event(1), dist.Normal(0.0, 1.0).expand([3]), dist.Normal(jnp.zeros(3), 1.0)):
        assert with_batch_shape(made) is made


def test_distributions_that_were_not_made_by_vmap_stay_as_they_are():
    """A class may declare its parameters as those of one element, or of other shapes than its events."""

    class Vector(dist.Distribution):
        arg_constraints: ClassVar = {"loc": dist.constraints.real}
        support = dist.constraints.real_vector
        pytree_data_fields = ("loc",)

        def __init__(self, loc):
            self.loc = loc
            super().__init__((), jnp.shape(loc))

        def log_prob(self, value):
            return dist.Normal(self.loc, 1.0).log_prob(value).sum(-1)

    kinds = [
        Vector(jnp.zeros(3)),
        dist.MatrixNormal(jnp.zeros((2, 3)), jnp.eye(2), jnp.eye(3)),
        dist.GaussianCopulaBeta(jnp.ones(2), jnp.ones(2), correlation_matrix=jnp.eye(2)),
        dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)),
        dist.LKJCholesky(3, 2.0),
        dist.GaussianRandomWalk(1.0, 4),
        dist.Dirichlet(jnp.ones(3)),
        dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(jnp.zeros(2), 1.0)),
        dist.OrderedLogistic(0.0, jnp.array([-1.0, 1.0])),
        dist.TruncatedNormal(jnp.zeros(2), 1.0, low=-1.0),
    ]
    for fn in kinds:
        assert with_batch_shape(fn) is fn, type(fn).__name__
