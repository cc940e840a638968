"""What a proposal reads of data in plates: its own elements' rows, the rest pooled, whatever the number of elements."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed, substitute, trace

import rws_jax
from tests.guides.cases import SMALL, generic, weights_of

pytestmark = pytest.mark.usefixtures("allow_rank_promotion", "allow_key_reuse")

X = jnp.array([0.5, -1.2, 0.3, 2.0, -0.4])


def compiled(model, *args, **options):
    """A guide with generic weights, made for these arguments."""
    guide = rws_jax.compile_guide(model, **SMALL | options)
    return guide, generic(weights_of(guide, *args))


def densities(guide, numbers, *args, **latents):
    """Log density of each element of each latent, at values that are given or drawn with a fixed key."""

    @jax.jit
    def run(numbers, args, latents):
        with seed(rng_seed=1), substitute(data={**numbers, **latents}):
            sites = trace(guide).get_trace(*args)
        return {name: s["fn"].log_prob(s["value"]) for name, s in sites.items() if s["type"] == "sample"}

    return run(numbers, args, latents)


def pair(x):
    with numpyro.plate("data", len(x)):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        k = numpyro.sample("k", dist.Bernoulli(logits=a))
        numpyro.sample("x", dist.Normal(a + k, 1.0), obs=x)


Z = {"a": jnp.linspace(-1.0, 1.0, 5), "k": jnp.array([0, 1, 1, 0, 1])}


def test_a_datum_alone_decides_on_its_latents():
    guide, numbers = compiled(pair, X)
    for_each = jax.jacobian(lambda x, a: densities(guide, numbers, x, a=a, k=Z["k"]), argnums=(0, 1))(X, Z["a"])
    for site in for_each:
        of_x, of_a = for_each[site]
        assert jnp.all((of_x != 0) == jnp.eye(5, dtype=bool)), site
        assert jnp.all((of_a != 0) == jnp.eye(5, dtype=bool)), site


@pytest.mark.parametrize("num", [1, 2, 1000])
def test_a_guide_runs_on_other_numbers_of_data(num):
    guide, numbers = compiled(pair, X)
    x = jnp.resize(X, num)
    z = {name: jnp.resize(value, num) for name, value in Z.items()}
    expected, found = densities(guide, numbers, X, **Z), densities(guide, numbers, x, **z)
    for site, value in expected.items():
        np.testing.assert_allclose(found[site], jnp.resize(value, num), rtol=1e-5)


def test_log_weights_of_a_datum_are_those_of_a_call_with_fewer():
    guide, numbers = compiled(pair, X)
    run = lambda x: rws_jax.importance_sample(jax.random.key(3), numbers, pair, guide, x, num_particles=400)
    of_all, of_first = (run(x).log_evidence() for x in (X, X[:2]))
    error = 5.0 * np.hypot(of_all.standard_error[:2], of_first.standard_error)
    np.testing.assert_array_less(np.abs(of_all.value[:2] - of_first.value), error)


# Minibatches


def of_full_data(size):
    def model(x):
        with numpyro.plate("data", len(x), subsample_size=size) as rows:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    return model


def of_minibatch(x, num=5):
    with numpyro.plate("data", num, subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("initial", [5, 2])
def test_minibatches_that_the_plate_takes_read_their_own_rows(initial):
    whole, part = (rws_jax.compile_guide(of_full_data(size), **SMALL) for size in (5, 2))
    numbers, z = generic(weights_of(whole if initial == 5 else part, X)), jnp.array([0.1, 0.7])
    whole = densities(whole, numbers, X, z=jnp.zeros(5).at[jnp.array([3, 1])].set(z))["z"]
    with seed(rng_seed=1), substitute(data={**numbers, "data": jnp.array([3, 1]), "z": z}):
        site = trace(part).get_trace(X)["z"]
    np.testing.assert_allclose(site["fn"].log_prob(z), whole[jnp.array([3, 1])], rtol=1e-5)
    assert site["scale"] == 2.5


def test_minibatches_that_the_caller_takes_read_their_own_rows():
    guide, numbers = compiled(of_minibatch, X)
    z = jnp.linspace(-1.0, 1.0, 5)
    whole = densities(guide, numbers, X, z=z)["z"]
    part = densities(guide, numbers, X[jnp.array([3, 1])], z=z[jnp.array([3, 1])])["z"]
    np.testing.assert_allclose(part, whole[jnp.array([3, 1])], rtol=1e-5)


# Plates within plates


def nested(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", x.shape[1]):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        with numpyro.plate("observations", x.shape[0]):
            e = numpyro.sample("e", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z + e, 1.0), obs=x)


NESTED_X = jnp.array([[0.5, -1.2, 0.3], [2.0, -0.4, 0.9]])
NESTED_Z = {"mu": jnp.array(0.3), "z": jnp.array([0.1, -0.4, 1.2]), "e": 0.3 * NESTED_X**2}


def test_groups_read_their_own_observations_and_the_mean_of_all():
    guide, numbers = compiled(nested, NESTED_X)
    of_x = jax.jacobian(lambda x: densities(guide, numbers, x, **NESTED_Z))(NESTED_X)
    assert jnp.all(of_x["mu"] != 0)
    # The pooled context is small beside the own data, and not zero.
    own = jnp.abs(jnp.einsum("goh,gh->oh", of_x["z"].transpose(0, 1, 2), jnp.eye(3)))
    assert jnp.all(own > 0)
    permuted = densities(guide, numbers, NESTED_X[::-1], **NESTED_Z | {"e": NESTED_Z["e"][::-1]})
    expected = densities(guide, numbers, NESTED_X, **NESTED_Z)
    chex.assert_trees_all_close(permuted, expected | {"e": expected["e"][::-1]}, rtol=1e-4)
    turned = densities(
        guide, numbers, NESTED_X[:, ::-1], mu=NESTED_Z["mu"], z=NESTED_Z["z"][::-1], e=NESTED_Z["e"][:, ::-1]
    )
    other = {"mu": expected["mu"], "z": expected["z"][::-1], "e": expected["e"][:, ::-1]}
    chex.assert_trees_all_close(turned, other, rtol=1e-4)


def test_groups_and_observations_may_be_more_or_fewer():
    guide, numbers = compiled(nested, NESTED_X)
    x = jnp.concatenate([NESTED_X] * 2)  # each observation twice: all averages stay as they are
    expected = densities(guide, numbers, NESTED_X, **NESTED_Z)
    found = densities(guide, numbers, x, **NESTED_Z | {"e": jnp.concatenate([NESTED_Z["e"]] * 2)})
    np.testing.assert_allclose(found["z"], expected["z"], rtol=1e-4)
    np.testing.assert_allclose(found["mu"], expected["mu"], rtol=1e-4)
    assert densities(guide, numbers, jnp.ones((7, 11)))["e"].shape == (7, 11)


# Plates that are not of data


EFFECTS = jnp.array([[0.9, 0.2], [0.1, 1.6], [0.5, 0.4], [1.1, 0.3]])


def noisy_or(x):
    with numpyro.plate("causes", 2):
        z = numpyro.sample("z", dist.Bernoulli(jnp.array([0.3, 0.2])))
    with numpyro.plate("effects", 4):
        numpyro.sample("x", dist.Bernoulli(1.0 - jnp.exp(-0.1 - EFFECTS @ z)), obs=x)


def test_a_plate_without_data_has_outputs_for_each_element():
    x, z = jnp.array([1.0, 0.0, 0.0, 1.0]), jnp.array([0, 1])
    guide, numbers = compiled(noisy_or, x)
    of_x = jax.jacobian(lambda x: densities(guide, numbers, x, z=z)["z"])(x)
    assert of_x.shape == (2, 4)
    assert jnp.linalg.matrix_rank(of_x) == 2  # causes read the effects each in its own way
    bias = numbers["guide"]["proposals"]["z"]["outputs"]["bias"]
    assert bias.shape == (2,)


def test_observations_with_parameters_of_their_own_are_read_element_by_element():
    x, z = jnp.array([1.0, 0.0, 0.0, 1.0]), jnp.array([0, 1])
    guide, numbers = compiled(noisy_or, x)
    found = [densities(guide, numbers, x[jnp.array(p)], z=z)["z"] for p in itertools.permutations(range(4))]
    assert (
        len({tuple(np.asarray(log_q).round(5).tolist()) for log_q in found}) == 6
    )  # as many as there are orders of 1, 0, 0, 1


def exchangeable(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_exchangeable_observations_are_pooled():
    guide, numbers = compiled(exchangeable, X)
    mu = jnp.array(0.3)
    expected = densities(guide, numbers, X, mu=mu)["mu"]
    for x in (X[::-1], X[jnp.array([2, 0, 1, 4, 3])], jnp.tile(X, 20)):
        np.testing.assert_allclose(densities(guide, numbers, x, mu=mu)["mu"], expected, rtol=1e-4)
    assert abs(densities(guide, numbers, X.at[0].add(1.0), mu=mu)["mu"] - expected) > 1e-3


def regression(x, y):
    """Covariates beside data, which belong together row by row."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def test_covariates_stay_with_their_data():
    y = jnp.array([0.2, 1.0, -0.7, 0.1, 0.4])
    guide, numbers = compiled(regression, X, y)
    slope, order = jnp.array(0.3), jnp.array([2, 0, 1, 4, 3])
    log_q = lambda x, y: densities(guide, numbers, x, y, slope=slope)["slope"]
    np.testing.assert_allclose(log_q(X[order], y[order]), log_q(X, y), rtol=1e-4)
    assert abs(log_q(X, y[order]) - log_q(X, y)) > 1e-4


def subsampled_mean(x):
    """A global latent, and data of which the model takes two."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x), subsample_size=2) as rows:
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])


def test_data_that_a_model_takes_by_itself_are_pooled():
    guide, numbers = compiled(subsampled_mean, X)
    assert "x over data" in numbers["guide"]["data"]["arguments"]
    mu = jnp.array(0.3)
    expected = densities(guide, numbers, X, mu=mu)["mu"]
    np.testing.assert_allclose(densities(guide, numbers, jnp.tile(X[::-1], 3), mu=mu)["mu"], expected, rtol=1e-4)


# What is drawn before


def dependent(x):
    with numpyro.plate("data", len(x)):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(a, 1.0))
        numpyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


@pytest.mark.parametrize("autoregressive", [True, False])
def test_proposals_read_each_other_only_where_they_should(autoregressive):
    guide, numbers = compiled(dependent, X, autoregressive=autoregressive)
    b = jnp.linspace(-1.0, 1.0, 5)

    def parameters(a):
        with seed(rng_seed=1), substitute(data={**numbers, "a": a, "b": b}):
            fn = trace(guide).get_trace(X)["b"]["fn"]
        return fn.means, fn.log_scales, fn.log_weights

    of_a = jax.tree.leaves(jax.jacobian(parameters)(Z["a"]))
    assert all(jnp.any(leaf != 0) == autoregressive for leaf in of_a)
