"""What `numpyro.handlers.condition` gives is a constant, and what observes a latent is no data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import condition, scope, seed

import rws_jax
from rws_jax.estimators.sleep import DreamParticle
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.vectorized import Vectorized
from rws_jax.programs.program import Index
from tests import oracles
from tests.models import rows

pytestmark = pytest.mark.usefixtures("allow_rank_promotion", "allow_key_reuse")

X, LOC = jnp.array([0.1, 1.0, 2.0]), 2.0


def model(x, *, size=3, late=False):
    """Data around latents around a location, which may come last."""
    locate = lambda: numpyro.sample("loc", dist.Normal(numpyro.param("m", 0.0), 1.0))
    loc = LOC if late else locate()
    with numpyro.plate("data", size, subsample_size=3):
        z = numpyro.sample("z", dist.Normal(loc, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
    if late:
        locate()


def posterior(x, *, size=3):
    a, b = numpyro.param("a", 0.0), numpyro.param("b", 0.0)
    with numpyro.plate("data", size, subsample_size=3):
        numpyro.sample("z", dist.Normal(a * x + b, jnp.sqrt(0.5)))


CONSTANT = {
    "by data": lambda **options: condition(partial(model, **options), {"loc": LOC}),
    "by function": lambda **options: condition(
        partial(model, **options), condition_fn=lambda site: LOC if site["name"] == "loc" else None
    ),
    "drawn last": lambda **options: condition(partial(model, late=True, **options), {"loc": LOC}),
}
PHI = {"a": jnp.array(0.5), "b": jnp.array(LOC / 2)}


@pytest.mark.parametrize("size", rows([3, 30], fast=[30]))
@pytest.mark.parametrize("name", rows(CONSTANT, fast=["by data"]))
def test_a_constant_is_scored_once_and_leaves_each_datum_its_weight(name, size):
    """The guide is the posterior, so the bound is log p(x, loc), and so is its gradient."""
    programs = oracles.seeded(CONSTANT[name](size=size), partial(posterior, size=size))
    loss = lambda m: -rws_jax.wake_theta_loss({"m": m}, PHI, *programs, X)
    evidence = lambda m: (
        size / 3 * dist.Normal(LOC, jnp.sqrt(2.0)).log_prob(X).sum() + dist.Normal(m, 1.0).log_prob(LOC)
    )
    assert jnp.allclose(jnp.array(jax.jit(jax.value_and_grad(loss))(0.3)), jnp.array(jax.value_and_grad(evidence)(0.3)))
    particle = Vectorized()(WakeParticle(), oracles.programs_of(*programs, {"m": 0.3}, PHI, X), 2)
    assert particle.units.shape == (3,)


@pytest.mark.parametrize("name", rows(CONSTANT, fast=["drawn last"]))
def test_a_constant_is_not_dreamt(name):
    program = CONSTANT[name]()
    programs = oracles.programs_of(program, posterior, {"m": 0.0}, PHI, X)
    run, dream = DreamParticle().dream(programs, Index(0))
    assert run["loc"]["value"] == LOC
    assert dream.data.keys() == {"x"}
    _, named = DreamParticle(("loc", "x")).dream(programs, Index(0))
    assert named.data.keys() == {"loc", "x"}
    assert named.data["loc"] != LOC


def test_sleep_finds_the_posterior_given_the_constant():
    program = condition(numpyro.handlers.substitute(model, {"m": 0.0}), {"loc": LOC})
    rws = rws_jax.make_step(program, posterior, insomnia=0.0, num_particles=50, phi_optimizer=optax.adam(0.05))
    state, _ = rws_jax.fit(rws.step, rws.init(jax.random.key(0), X), 600, X, progress_bar=False)
    assert jnp.abs(state.phi["a"] - 0.5) < 0.05
    assert jnp.abs(state.phi["b"] - 1.0) < 0.05


@pytest.mark.parametrize("by", rows(["batch", "plate"], fast=["plate"]))
def test_a_constant_may_have_a_batch_or_a_plate_of_its_own(by):
    """Locations of a mixture, say: they add the same to all weights, once."""
    mu = jnp.array([-1.0, 1.0])

    def mixture(x):
        if by == "batch":
            loc = numpyro.sample("mu", dist.Normal(0.0, 3.0).expand([2]))
        else:
            with numpyro.plate("k", 2):
                loc = numpyro.sample("mu", dist.Normal(0.0, 3.0))
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    def exact_guide(x):
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Bernoulli(logits=2.0 * x))

    given = condition(mixture, {"mu": mu})
    rws_jax.make_step(given, exact_guide).init(jax.random.key(0), X)
    loss = lambda x: rws_jax.wake_theta_loss({}, {}, *oracles.seeded(given, exact_guide), x)
    of_data = jnp.logaddexp(*(dist.Normal(loc, 1.0).log_prob(X) for loc in mu)).sum() - 3 * jnp.log(2.0)
    assert jnp.allclose(-jax.jit(loss)(X), of_data + dist.Normal(0.0, 3.0).log_prob(mu).sum(), rtol=1e-5)


def test_constants_and_data_go_with_paths():
    """Where Python branches, what is given before the first latent is a constant, and the rest data."""

    def branching(x=None):
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        high = numpyro.sample("high", dist.Bernoulli(0.5), infer={"branching": True})
        numpyro.sample("x", dist.Normal(loc + 2.0 if high else loc, 1.0))

    def coin(x=None):
        numpyro.sample("high", dist.Bernoulli(0.5 if x is None else 0.5 + 0.0 * x), infer={"branching": True})

    given = condition(branching, {"loc": LOC, "x": jnp.array(2.5)})
    observations = lambda data: ((data["x"],), {})
    rws = rws_jax.make_step(
        given, coin, num_particles=50, insomnia=0.5, compile_after=0, simulated_data_to_args=observations
    )
    _, info = rws.step(rws.init(jax.random.key(0)))
    assert jnp.isfinite(info.wake_theta_loss)
    assert jnp.allclose(info.sleep_phi_loss, jnp.log(2.0))
    programs = oracles.programs_of(given, coin, {}, {})
    run, dream = DreamParticle().dream(programs, Index(0, alone=True))
    assert (run["loc"]["value"], dream.data.keys()) == (LOC, {"x"})


def test_what_depends_on_latents_is_data_as_with_obs():
    """By the handler, data come into a program without an argument."""
    given = condition(partial(model, None), {"x": X, "loc": LOC})
    _, dream = DreamParticle().dream(oracles.programs_of(given, posterior, {"m": 0.0}, PHI), Index(0))
    assert dream.data.keys() == {"x"}
    assert not jnp.any(dream.data["x"] == X)
    outside = scope(condition(partial(model, None), {"x": X, "loc": LOC}), prefix="m")
    run, dream = DreamParticle().dream(oracles.programs_of(outside, posterior, {"m/m": 0.0}, PHI), Index(0))
    assert dream.data.keys() == {"m/x"}
    assert run["m/loc"]["value"] == LOC


def test_a_model_of_constants_alone_has_nothing_to_dream():
    def constants():
        numpyro.sample("loc", dist.Normal(0.0, 1.0))
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    given = condition(constants, {"loc": LOC})
    with pytest.raises(ValueError, match=r"(?s)no data to dream.*constants \['loc'\].*observed_sites"):
        rws_jax.sleep_phi_loss({}, {}, seed(given, 0), seed(lambda: numpyro.sample("z", dist.Normal(0.0, 1.0)), 1))


def scored_elsewhere(x, observed, *, whole=True):
    """A latent that is drawn at one site and scored at another."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).mask(not whole))
    numpyro.sample("z_aux", dist.Normal(0.0, 0.3), obs=observed(z))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guess(x, z_aux=None):
    numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.3) * x, 0.7))


def guess_masked(x, z_aux=None):
    numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.3) * x, 0.7).mask(False))


OBSERVED = {
    "the latent": lambda z: z,
    "half of it": lambda z: z / 2,
    "at random": lambda z: jax.random.normal(numpyro.prng_key()),
}


@pytest.mark.parametrize("name", OBSERVED)
def test_sleep_refuses_what_observes_a_latent(name):
    program = lambda x: scored_elsewhere(x, OBSERVED[name], whole=False)
    words = r"(?s)'z_aux', which observes what the model itself draws.*insomnia=1.0"
    with pytest.raises(ValueError, match=words):
        rws_jax.make_step(program, guess, insomnia=0.5).init(jax.random.key(0), 1.0)
    loss = lambda x: rws_jax.sleep_phi_loss({}, {"slope": 0.3}, seed(program, 0), seed(guess, 1), x)
    with pytest.raises(ValueError, match=words):
        jax.jit(loss)(1.0)
    rws_jax.make_step(program, guess).init(jax.random.key(0), 1.0)  # wake scores it as it is


def test_wake_scores_a_latent_at_the_site_that_observes_it():
    """z ~ N(0, 0.3), by way of a masked site; the guide is the posterior."""

    def exact_guide(x):
        scale = 0.3 / jnp.sqrt(1.0 + 0.3**2)
        numpyro.sample("z", dist.Normal(scale**2 * x, scale))

    model = lambda x: scored_elsewhere(x, OBSERVED["the latent"])
    rws_jax.make_step(model, exact_guide).init(jax.random.key(0), 1.0)
    loss = lambda x: rws_jax.wake_theta_loss({}, {}, *oracles.seeded(model, exact_guide), x)
    assert jnp.allclose(-jax.jit(loss)(1.0), dist.Normal(0.0, jnp.sqrt(1.09)).log_prob(1.0), rtol=1e-5)


def test_sleep_refuses_a_latent_that_is_not_scored():
    program = lambda x: scored_elsewhere(x, OBSERVED["the latent"])
    with pytest.raises(ValueError, match=r"(?s)latent site 'z', which is masked as a whole.*insomnia=1.0"):
        rws_jax.make_step(program, guess_masked, insomnia=0.5).init(jax.random.key(0), 1.0)


def test_constants_are_kept_apart_from_data_whatever_their_names():
    """The first, by name, is the one that depends on a latent."""

    def two(x=None):
        numpyro.sample("zzz", dist.Normal(0.0, 1.0))
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("aaa", dist.Normal(z, 1.0))

    given = condition(two, {"zzz": 1.5, "aaa": 2.5})
    programs = oracles.programs_of(given, lambda x=None: numpyro.sample("z", dist.Normal(0.0, 1.0)), {}, {})
    run, dream = DreamParticle(rewrite=lambda data: ((), {})).dream(programs, Index(0))
    assert (run["zzz"]["value"], dream.data.keys()) == (1.5, {"aaa"})
