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
        pytest.param(jnp.int8, lambda x: x + 127 > 0, id="int8", marks=pytest.mark.slow),
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


# Trials of 1, 2 and 3 measurements of z ~ N(0, 1) with noise N(0, 1): the posterior mean is their sum / (number + 1).
NUMBERS = jnp.array([1, 2, 3])
MASK = jnp.arange(3)[None] < NUMBERS[:, None]
TRIALS = jnp.where(MASK, jnp.array([[0.3, -1.0, 0.8]]), 0.0)
WEIGHTS = {"w": 1.0 / (NUMBERS + 1.0)}


def trials(observed, mask):
    with numpyro.plate("trials", 3):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        each = dist.Normal(z[:, None], 1.0).expand([3, 3]).mask(mask).to_event(1)
        numpyro.sample("x", each, obs=observed)


def trials_in_plate(observed, mask):
    with numpyro.plate("trials", 3, dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("measurements", 3, dim=-1), numpyro.handlers.mask(mask=mask):
            numpyro.sample("x", dist.Normal(z, 1.0), obs=observed)


def trials_in_scan(observed, mask):
    def step(z, row):
        x, observed = row
        with numpyro.plate("trials", 3), numpyro.handlers.mask(mask=observed):
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return z, None

    with numpyro.plate("trials", 3):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.contrib.control_flow.scan(step, z, (observed, mask))


def sums_guide(x, keepdims=False):
    weight = numpyro.param("w", jnp.zeros(3))
    with numpyro.plate("trials", 3, dim=-2 if keepdims else -1):
        loc = jnp.reshape(weight * jnp.nansum(x, axis=-1), (3, 1) if keepdims else (3,))
        numpyro.sample("z", dist.Normal(loc, 1.0))


PADDED = {
    "zeros, mask as argument": (trials, lambda x, mask: sums_guide(x), (TRIALS, MASK)),
    "in a plate": (trials_in_plate, lambda x, mask: sums_guide(x, True), (TRIALS, MASK)),
    "in a scan": (lambda x, mask: trials_in_scan(x, mask), lambda x, mask: sums_guide(x.T), (TRIALS.T, MASK.T)),
    "nan": (lambda x: trials(x, ~jnp.isnan(x)), sums_guide, (jnp.where(MASK, TRIALS, jnp.nan),)),
    "nan, replaced by the model": (
        lambda x: trials(jnp.where(jnp.isnan(x), 0.0, x), ~jnp.isnan(x)),
        lambda x: sums_guide(jnp.where(jnp.isnan(x), 0.0, x)),
        (jnp.where(MASK, TRIALS, jnp.nan),),
    ),
    "an array of another name": (
        lambda batch: trials(batch["y"], batch["seen"]),
        lambda batch: sums_guide(batch["y"]),
        ({"y": TRIALS, "seen": MASK},),
    ),
    "simulated_data_to_args": (trials, lambda x, mask: sums_guide(x), (TRIALS, MASK)),
}

PADDED_FAST = "zeros, mask as argument", "in a scan", "nan, replaced by the model"


@pytest.mark.usefixtures("allow_rank_promotion", "allow_key_reuse")
@pytest.mark.parametrize("name", [n if n in PADDED_FAST else pytest.param(n, marks=pytest.mark.slow) for n in PADDED])
def test_what_the_model_masks_stays_what_it_is(name):
    """At weights 1/2, 1/3, 1/4 no gradient is left. Where padding is dreamt it is 3.0, 0.93 and 0."""
    model, guide, args = PADDED[name]
    names = {"x": None} if name == "simulated_data_to_args" else {}
    options = {"simulated_data_to_args": lambda sim, x, mask: ((sim["x"], mask), {})} if names else {}
    mean, error = mean_gradient(model, guide, WEIGHTS, *args, num_particles=50, **options)
    assert jnp.all(jnp.abs(mean[0]) < 5 * error[0])
    assert jnp.all(error < 0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("allow_rank_promotion")
def test_all_of_a_vector_is_masked_with_it():
    """The mask has the batch shape; other rows are dreamt."""
    mask = jnp.array([True, False, True])

    def model(x):
        with numpyro.plate("data", 3), numpyro.handlers.mask(mask=mask):
            numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), obs=x)

    data = dream(model, 4, jnp.full((3, 2), 7.0))[1]["x"]
    assert jnp.array_equal(data == 7.0, jnp.broadcast_to(~mask[None, :, None], (4, 3, 2)))
    for masked, kept in ((True, False), (False, True)):
        single = lambda x, masked=masked: numpyro.sample("x", dist.Normal(0.0, 1.0).mask(masked), obs=x)
        assert bool(jnp.all(dream(single, 2, 7.0)[1]["x"] == 7.0)) == kept


def lengths_model(n, x):
    """The mask follows from a number that is dreamt too."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    n = numpyro.sample("n", dist.Poisson(jnp.exp(z)), obs=n)
    with numpyro.plate("measurements", 3), numpyro.handlers.mask(mask=jnp.arange(3) < n):
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def lengths_guide(n, x):
    numpyro.sample("z", dist.Normal(numpyro.param("a", 0.1) * n + jnp.sum(x), 1.0))


@pytest.mark.slow
def test_a_mask_that_is_dreamt_is_refused_unless_the_caller_says_what_the_guide_sees():
    """Where it is False the real value would stay, which is data, as the real mask is another."""
    args = jnp.array(2), jnp.array([0.3, -1.0, 0.0])
    loss = lambda **options: rws_jax.sleep_phi_loss(
        {}, {"a": 0.1}, seed(lengths_model, 0), seed(lengths_guide, 1), *args, **options
    )
    init = lambda **options: rws_jax.make_step(lengths_model, lengths_guide, insomnia=0.5, **options).init(
        jax.random.key(0), *args
    )
    fill = lambda sim, n, x: ((sim["n"], jnp.where(jnp.arange(3) < sim["n"], sim["x"], 0.0)), {})
    for sleep in (loss, init, lambda **options: jax.jit(lambda: loss(**options))()):
        with pytest.raises(ValueError, match="the mask of observed site 'x' depends on what is dreamt") as error:
            sleep()
        check(error, ValueError, "simulated_data_to_args", "jnp.where(mask, sim['x'], 0.0)")
        sleep(simulated_data_to_args=fill)
