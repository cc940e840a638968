"""Supports, masks and units: what a log density is where NumPyro's is a number, NaN or infinite."""

from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed

from rws_jax.core.supports import feasible
from rws_jax.programs.density import Units, log_density, own_dists
from rws_jax.programs.program import Arguments, Index, Program
from rws_jax.programs.run import sample

# distribution of the model, a value outside of its support, one inside
OUTSIDE = {
    "exponential": (dist.Exponential(2.0), -1.0, 0.5),
    "gamma": (dist.Gamma(0.5, 1.0), -1.0, 0.5),
    "lognormal": (dist.LogNormal(0.0, 1.0), -1.0, 0.5),
    "half-normal": (dist.HalfNormal(1.0), -0.1, 0.1),
    "uniform": (dist.Uniform(-1.0, 2.0), 2.5, 0.0),
    "beta": (dist.Beta(2.0, 3.0), 1.5, 0.5),
    "truncated": (dist.TruncatedNormal(0.0, 1.0, low=1.0), 0.0, 1.5),
    "poisson": (dist.Poisson(3.0), -1.0, 2.0),
    "categorical": (dist.Categorical(jnp.array([0.2, 0.8])), 2, 1),
    "bernoulli": (dist.Bernoulli(0.3), 0.5, 1.0),
    "normal": (dist.Normal(0.0, 1.0), jnp.nan, 0.3),
    "infinite": (dist.Normal(0.0, 1.0), jnp.inf, 0.3),
}


@pytest.mark.floors
@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_of_the_support_the_log_density_is_minus_infinity(name):
    fn, outside, inside = OUTSIDE[name]
    assert log_density(fn, jnp.asarray(outside), None) == -jnp.inf
    assert jnp.allclose(log_density(fn, jnp.asarray(inside), None), fn.log_prob(inside))
    assert jnp.isfinite(fn.log_prob(feasible(fn, jnp.asarray(outside), None)))
    assert feasible(fn, jnp.asarray(inside), None) == inside


ORDERED = dist.TransformedDistribution(dist.Normal(jnp.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform())
VECTORS = {
    "dirichlet": (dist.Dirichlet(jnp.ones(3)), jnp.array([0.5, -0.2, 0.7]), jnp.array([0.2, 0.3, 0.5])),
    "ordered": (ORDERED, jnp.array([0.0, 2.0, 1.0]), jnp.array([0.0, 1.0, 2.0])),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_are_tested_if_they_were_drawn_from_another_support(name):
    fn, outside, inside = VECTORS[name]
    normal = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
    assert log_density(fn, outside, normal) == -jnp.inf
    assert jnp.allclose(log_density(fn, inside, normal), fn.log_prob(inside))
    assert jnp.all(fn.support(feasible(fn, outside, normal)))


def test_gradients_of_vectors_outside_of_the_support_are_exactly_zero():
    normal = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
    loss = lambda concentration: log_density(dist.Dirichlet(concentration), VECTORS["dirichlet"][1], normal)
    assert jax.grad(loss)(jnp.full(3, 0.5)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [-1.0, 0.0, jnp.nan])
@pytest.mark.parametrize(
    "make", [dist.Gamma, dist.LogNormal, dist.Weibull, dist.InverseGamma], ids=lambda d: d.__name__
)
def test_gradients_outside_of_the_support_are_exactly_zero(make, value):
    grad = jax.grad(lambda a, b: log_density(make(a, b), jnp.asarray(value), None), argnums=(0, 1))(0.7, 1.3)
    assert [float(g) for g in grad] == [0.0, 0.0]


def test_an_event_is_outside_if_any_element_is():
    fn = dist.Exponential(jnp.ones((2, 3))).to_event(1)
    value = jnp.array([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]])
    assert log_density(fn, value, None).tolist() == [-3.0, -jnp.inf]
    assert jnp.all(feasible(fn, value, None) > 0)
    assert jnp.all(feasible(fn, value, None)[0] == value[0])


@pytest.mark.floors
@pytest.mark.parametrize("order", ["mask outside", "mask inside"])
def test_masked_elements_count_neither_as_inside_nor_as_outside(order):
    mask = jnp.array([[True, False]])
    fn = dist.Exponential(jnp.ones((1, 2)))
    value = jnp.array([[1.0, jnp.nan]])
    if order == "mask outside":
        fn, expected = fn.mask(mask).expand((1, 2)), [[-1.0, 0.0]]
    else:
        fn, expected = fn.mask(mask).to_event(1), [-1.0]
    assert log_density(fn, value, None).tolist() == expected
    assert log_density(dist.Exponential(1.0).mask(False), jnp.asarray(-1.0), None) == 0.0


def test_draws_of_a_bernoulli_are_not_tested_again_but_other_draws_are():
    bernoulli, grey = dist.Bernoulli(0.3, validate_args=False), jnp.asarray(0.5)
    assert log_density(bernoulli, grey, dist.Bernoulli(0.9)) == bernoulli.log_prob(grey)
    assert log_density(bernoulli, grey, dist.Normal(0.0, 1.0)) == -jnp.inf


@pytest.mark.parametrize("of", [dist.Bernoulli, partial(dist.Binomial, 3), dist.Categorical])
def test_logits_may_be_whole_numbers(of):
    logits, value = jnp.array([1, 0]), jnp.array(1)
    whole, floats = of(logits=logits), of(logits=logits.astype(float))
    assert jnp.array_equal(log_density(whole, value, None), log_density(floats, value, None))
    assert jnp.allclose(log_density(whole, value, None), whole.log_prob(value))


def test_draws_of_vectors_off_by_rounding_are_not_taken_for_outside():
    """A simplex is tested within 1e-6, which float32 sums of some thousand numbers exceed."""
    draws = jax.nn.softmax(jax.random.normal(jax.random.key(0), (50, 300))) * (1 + 3e-6)
    fn = dist.Dirichlet(jnp.ones((50, 300)))
    assert not jnp.any(fn.support(draws))
    assert jnp.all(log_density(fn, draws, fn) > -jnp.inf)
    assert jnp.all(log_density(fn, draws, dist.Delta(draws, event_dim=1)) > -jnp.inf)


def traced(program):
    return sample(Program.of_seeded(seed(program, 0), "model", None), Arguments((), {}), Index(0))


@pytest.mark.floors
def test_units_are_the_plates_common_to_all_sites():
    def model():
        with numpyro.plate("a", 4, dim=-2):
            numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.plate("b", 3, dim=-1):
                numpyro.sample("x", dist.Normal(0.0, 1.0), obs=jnp.zeros((4, 3)))

    def guide():
        with numpyro.plate("a", 4, dim=-2):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    runs = traced(model), traced(guide)
    units = Units.of(*runs)
    assert units == Units(((-2, 4),), 1.0)
    log_p = units.log_density(runs[0], {}, own_dists)
    assert log_p.shape == (4,)
    sites = [runs[0][name]["fn"].log_prob(runs[0][name]["value"]) for name in "zx"]
    assert jnp.allclose(log_p, sites[0][:, 0] + sites[1].sum(axis=1))


def test_plates_in_sequence_that_share_a_dim_are_no_units():
    def model():
        with numpyro.plate("a", 4):
            numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("b", 4):
            numpyro.sample("y", dist.Normal(0.0, 1.0))

    assert Units.of(traced(model)) == Units((), 1.0)


@pytest.mark.floors
@pytest.mark.usefixtures("allow_key_reuse")
def test_the_scale_of_subsampling_is_taken_out_and_that_of_handlers_stays():
    def model():
        with numpyro.plate("a", 12, subsample_size=4), numpyro.handlers.scale(scale=5.0):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    run = traced(model)
    units = Units.of(run)
    assert units.scale == 3.0
    assert jnp.allclose(units.log_density(run, {}, own_dists), 5.0 * dist.Normal(0.0, 1.0).log_prob(run["z"]["value"]))
