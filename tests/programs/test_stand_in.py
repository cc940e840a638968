"""Dreams have the form of the real data: numbers of their type, and real placeholders where the model masks."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed

import rws_jax
from rws_jax.core.supports import fits
from tests.checks.test_errors import check
from tests.oracles import dream

LOGIT = jnp.log(9.0)  # of p(z = 1 | x = 1) where z is fair and x equals it with probability 0.9


def noisy_copy(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Bernoulli(0.1 + 0.8 * z), obs=x)


def guide_of(is_zero):
    """A guide that tells the two values apart by what only their own type does."""

    def guide(x):
        a, b = numpyro.param("a", 0.0), numpyro.param("b", 0.0)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Bernoulli(logits=jnp.where(is_zero(x), a, b)))

    return guide


def mean_gradient(model, guide, phi, *args, num_seeds=100, **options):
    """Mean of sleep-phi's gradient over seeds, as a vector, and its standard error."""

    def loss(phi, rng_key):
        keys = jax.random.split(rng_key)
        return rws_jax.sleep_phi_loss({}, phi, seed(model, keys[0]), seed(guide, keys[1]), *args, **options)

    with jax.debug_key_reuse(False):
        keys = jax.random.split(jax.random.key(0), num_seeds)
        grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(phi, keys)
    grads = jnp.stack(jax.tree.leaves(grads))
    return grads.mean(axis=1), grads.std(axis=1) / jnp.sqrt(num_seeds)


@pytest.mark.parametrize(
    ("dtype", "is_zero"),
    [
        pytest.param(bool, lambda x: ~x, id="bool"),
        pytest.param(jnp.uint8, lambda x: x - 1 == 255, id="uint8"),
        pytest.param(jnp.int8, lambda x: x * 127 != 127, id="int8"),
    ],
)
def test_a_guide_may_compute_with_the_type_of_its_data(dtype, is_zero):
    """The optimum of sleep is the posterior's logit, -2.197 for x = 0 and 2.197 for x = 1: it has no gradient."""
    data = jnp.array([1, 0, 0]).astype(dtype)
    mean, error = mean_gradient(noisy_copy, guide_of(is_zero), {"a": -LOGIT, "b": LOGIT}, data, num_particles=30)
    assert jnp.all(jnp.abs(mean) < 5 * error)
    assert jnp.all(error < 0.03)
    # At (0, 0) it is -E[z - 1/2; x], 0.2 and -0.2 for each of three data.
    mean, error = mean_gradient(noisy_copy, guide_of(is_zero), {"a": 1e-3, "b": 1e-3}, data, num_particles=30)
    assert jnp.all(jnp.abs(mean - jnp.array([0.6, -0.6])) < 5 * error)


FITS = [
    (dist.Bernoulli(0.5), bool, True),
    (dist.Bernoulli(logits=0.0), jnp.uint8, True),
    (dist.Categorical(jnp.ones(2) / 2), bool, True),
    (dist.Categorical(jnp.ones(3) / 3), bool, False),
    (dist.Categorical(jnp.ones(256) / 256), jnp.uint8, True),
    (dist.Categorical(jnp.ones(257) / 257), jnp.uint8, False),
    (dist.Binomial(255, 0.5), jnp.uint8, True),
    (dist.Binomial(256, 0.5), jnp.uint8, False),
    (dist.Binomial(jnp.array([1, 300]), 0.5), jnp.uint8, False),
    (dist.BetaBinomial(1.0, 1.0, 127).expand([2]).to_event(1), jnp.int8, True),
    (dist.Multinomial(200, jnp.ones(3) / 3), jnp.uint8, True),
    (dist.Multinomial(200, jnp.ones(3) / 3), jnp.int8, False),
    (dist.DiscreteUniform(-1, 1), jnp.uint8, False),
    (dist.DiscreteUniform(-1, 1), jnp.int8, True),
    (dist.Poisson(1.0), jnp.uint8, False),
    (dist.Poisson(1.0), jnp.uint32, True),
    (dist.Geometric(0.5), jnp.int32, True),  # whose sampler returns floats
    (dist.Normal(0.0, 1.0), jnp.int32, False),
    (dist.Normal(0.0, 1.0), jnp.float16, True),
    (dist.Bernoulli(0.5).mask(False), bool, True),
]


@pytest.mark.usefixtures("allow_rank_promotion")  # for Multinomial
@pytest.mark.parametrize(("fn", "dtype", "expected"), FITS)
def test_whether_all_that_a_distribution_draws_is_of_a_type(fn, dtype, expected):
    drawn = fn.sample(jax.random.key(0)).dtype
    assert fits(fn, drawn, dtype) == expected


def test_a_bound_that_is_traced_is_not_known():
    fit = lambda n: jnp.array([fits(dist.Binomial(n, 0.5), jnp.int32, dtype) for dtype in (jnp.uint8, jnp.int32)])
    assert jax.jit(fit)(10).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [jnp.uint8, bool])
def test_dreams_that_the_type_of_the_data_does_not_hold_are_refused(dtype):
    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Poisson(1.0 + z), obs=x)

    guide, x = guide_of(lambda x: x == 0), jnp.array([1, 0], dtype)
    for sleep in (
        lambda: rws_jax.make_step(model, guide, insomnia=0.5).init(jax.random.key(0), x),
        lambda: rws_jax.sleep_phi_loss({}, {"a": 0.0, "b": 0.0}, seed(model, 0), seed(guide, 1), x),
    ):
        with pytest.raises(ValueError, match="no numbers of the type") as error:
            sleep()
        check(error, ValueError, "observed site 'x'", "Poisson", "int32", str(jnp.dtype(dtype)))
    rws_jax.make_step(model, guide).init(jax.random.key(0), x)  # wake is right


def test_integers_under_a_density_are_refused_and_python_integers_are_not():
    def model(x):
        numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    with pytest.raises(ValueError, match="no numbers of the type") as error:
        dream(model, 2, jnp.array(3, int))
    check(error, ValueError, "all that Normal may draw, such as float32", "data of type int32")
    for real in (3, 3.0, np.float64(3.0), jnp.array(3.0, jnp.float16)):  # the type of the first is that of its context
        data = dream(model, 2, real)[1]["x"]
        assert data.dtype == (jnp.float16 if jnp.result_type(real) == jnp.float16 else jnp.float32)


def test_dreams_within_scan_have_the_type_of_the_data():
    def model(x):
        def step(z, x):
            z = numpyro.sample("z", dist.Bernoulli(jnp.where(z, 0.9, 0.1)))
            numpyro.sample("x", dist.Bernoulli(0.1 + 0.8 * z), obs=x)
            return z == 1, None

        numpyro.contrib.control_flow.scan(step, True, x)

    assert dream(model, 2, jnp.array([True, False, True]))[1]["x"].dtype == bool
