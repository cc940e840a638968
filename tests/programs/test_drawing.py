"""Draws that are constants from the moment they are made: one run of the guide is both drawn and scored."""

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import rws_jax
from rws_jax.core.draws import constant_distribution
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.vectorized import Vectorized
from tests import models, oracles

PHI = {"a": jnp.array(0.4)}


@jax.custom_jvp
def _not_differentiable(x):
    return x


@_not_differentiable.defjvp
def _fails(primals, tangents):
    raise AssertionError("a way of drawing is differentiated")


class OwnNormal(dist.Distribution):
    """A user's distribution, which does not tell JAX of its arrays, and whose way of drawing has no derivative."""

    support = constraints.real

    def __init__(self, shifts):
        self.shifts = shifts
        super().__init__(jnp.shape(shifts["loc"]))

    def sample(self, key, sample_shape=()):
        return _not_differentiable(self.shifts["loc"]) + jax.random.normal(key, sample_shape + self.batch_shape)

    def log_prob(self, value, intermediates=None):
        return dist.Normal(self.shifts["loc"], 1.0).log_prob(value)


class OwnExponential(dist.Exponential):
    """The same, as NumPyro writes them: within a scan, distributions have to tell JAX of their arrays."""

    def sample(self, key, sample_shape=()):
        return dist.Exponential(_not_differentiable(self.rate)).sample(key, sample_shape)


def many_kinds():
    """Latents that depend on one another, of distributions within distributions."""
    a = numpyro.param("a", 0.4)
    z = numpyro.sample("own", OwnNormal({"loc": a}))
    scale = numpyro.deterministic("scale", jnp.exp(a * z))
    y = numpyro.sample("masked", OwnExponential(scale).expand([3]).mask(jnp.arange(3) > 0).to_event(1))
    transforms = [dist.transforms.AffineTransform(a * z, scale)]
    y = numpyro.sample("moved", dist.TransformedDistribution(OwnNormal({"loc": a * y.sum()}), transforms))
    parts = [OwnNormal({"loc": a * y}), OwnNormal({"loc": -a})]
    y = numpyro.sample("mixture", dist.MixtureGeneral(dist.Categorical(logits=a * jnp.arange(2.0)), parts))
    with numpyro.handlers.substitute(data={"given": a * y}):
        y = numpyro.sample("given", dist.Normal(a, 1.0))

    def step(last, _):
        rate = numpyro.sample("rate", OwnExponential(jnp.exp(a * jnp.tanh(last))))
        last = numpyro.sample("last", dist.Normal(a * rate + jax.random.normal(numpyro.prng_key()), 1.0))
        return last, None

    scan(step, y, jnp.arange(3))


@pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
def test_one_run_has_the_draws_densities_and_gradients_of_two():
    """The second run is made at what the first has drawn with its parameters stopped."""
    particle = WakeParticle()

    def once(programs, index):
        runs, draws = particle.drawn(programs, index)
        return particle.scored(runs, draws), draws

    def twice(programs, index):
        draws = particle.draw(programs, index)
        return particle.score(programs, index, draws), draws

    def of(run):
        programs = lambda phi: oracles.programs_of(many_kinds, many_kinds, PHI, phi)

        def log_q(phi):
            scored, draws = Vectorized()(run, programs(phi), 4)
            return scored.log_q, (scored, draws.latents)

        return jax.jacrev(log_q, has_aux=True)(PHI)

    found, expected = jax.jit(lambda: (of(once), of(twice)))()
    assert jnp.all(jnp.abs(found[0]["a"]) > 1e-3)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_the_guide_runs_once_for_all_that_wake_computes():
    model, guide, x = models.BY_HAND["scan"][:3]
    runs = []

    def counted(x):
        runs.append(None)
        guide(x)

    params = models.BY_HAND_THETA, models.BY_HAND_PHI
    jax.eval_shape(lambda: rws_jax.wake_phi_loss(*params, *oracles.seeded(model, counted), x, num_particles=3))
    assert len(runs) == 1


def test_a_constant_distribution_leaves_the_one_that_it_is_made_of_alone():
    def slopes(a):
        fn = dist.TransformedDistribution(dist.Normal(a, 1.0), [dist.transforms.AffineTransform(a, 2.0)])
        constant = constant_distribution(fn.expand([2]).to_event(1))
        return constant.log_prob(jnp.ones(2)), fn.log_prob(1.0)

    assert jax.jacfwd(slopes)(0.5) == (0.0, -0.375)  # of the first one none; (1 - a) / 2 - a is standard normal


class Notes(dict):
    """No tree of JAX's."""


class Pair(tuple):
    """Nor is this one."""


@pytest.mark.parametrize("attribute", [Notes(a=1), Pair((1, 2)), [Notes(a=1)], {1: 2, "a": 3}, None], ids=str)
def test_a_constant_distribution_may_hold_anything(attribute):
    """Also itself."""
    fn = dist.Normal(0.5, 1.0)
    fn.note = fn if attribute is None else attribute
    constant = constant_distribution(fn)
    assert constant.loc == 0.5
    assert constant.note is constant if attribute is None else constant.note == attribute
