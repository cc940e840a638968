"""Particles that run one by one, un-jitted: programs that branch and recurse in Python."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import cond
from numpyro.handlers import mask, seed

import rws_jax
from rws_jax.estimators import score
from rws_jax.estimators.bound import theta_loss
from rws_jax.estimators.sleep import DreamParticle, dream_loss
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.data import Data
from rws_jax.execution.executor import side_by_side
from rws_jax.execution.one_by_one import OneByOne
from rws_jax.programs.program import Index
from tests import models, oracles
from tests.oracles import programs_of, seeded

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
THETA, PHI = models.BY_HAND_THETA, models.BY_HAND_PHI


@pytest.mark.parametrize(
    "name", [pytest.param("mixed", marks=pytest.mark.slow), "subsampled", pytest.param("cond", marks=pytest.mark.slow)]
)
def test_one_by_one_and_mapped_over_are_the_same_numbers(name):
    """Particle k is the same particle, so losses and gradients are.

    Compiled here, to save time: a program that does not branch in Python can be.
    """
    model, guide, x = models.BY_HAND[name][:3]

    def losses(theta, phi, vectorize):
        options = {"num_particles": 2, "vectorize_particles": vectorize}
        wake = rws_jax.wake_phi_loss(theta, phi, *seeded(model, guide), x, **options)
        theta_loss = rws_jax.wake_theta_loss(theta, phi, *seeded(model, guide), x, **options)
        return theta_loss + wake + rws_jax.sleep_phi_loss(theta, phi, *seeded(model, guide), x, **options)

    value_and_grads = lambda vectorize: jax.value_and_grad(losses, argnums=(0, 1))(THETA, PHI, vectorize)
    chex.assert_trees_all_close(*jax.jit(lambda: (value_and_grads(True), value_and_grads(False)))(), rtol=2e-5)


def draws_alone(programs_, num, delta=0.0):
    """The draws of particles that run on their own, one by one."""
    return [WakeParticle(delta).draw(programs_, Index(number, alone=True)) for number in range(num)]


def test_a_particle_that_runs_alone_comes_from_the_same_of_guide_and_defensive_guide():
    model, guide, x = models.BY_HAND["one latent"][:3]
    programs_ = programs_of(model, guide, THETA, PHI, x)
    alone = jnp.stack([d.latents["z"] for d in draws_alone(programs_, 12, 0.3)])
    chex.assert_trees_all_close(alone, oracles.draw(programs_, 12, 0.3).latents["z"], atol=1e-6)
    of_guide = oracles.draw(programs_, 12).latents["z"]
    assert 1 <= jnp.sum(jnp.abs(alone - of_guide) > 1e-3) <= 11


# The same model by Python, by cond, and by a superset of sites with masks


def high_or_low(high, low):
    """Programs that draw z from one of two distributions, in three ways."""

    def python(branch):
        return numpyro.sample("z", high if branch == 1 else low)

    def control_flow(branch):
        draw = lambda fn: lambda _: numpyro.sample("z", fn)
        return cond(branch == 1, draw(high), draw(low), None)

    def superset(branch):
        with mask(mask=branch == 1):
            z_high = numpyro.sample("z_high", high)
        with mask(mask=branch == 0):
            z_low = numpyro.sample("z_low", low)
        return jnp.where(branch == 1, z_high, z_low)

    return {"python": python, "cond": control_flow, "mask": superset}


def branching_model(way):
    def model(x):
        mu = numpyro.param("mu", 0.2)
        branch = numpyro.sample("branch", dist.Bernoulli(0.4))
        z = high_or_low(dist.Normal(2.0 + mu, 1.0), dist.Normal(-1.0, 0.5))[way](branch)
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def branching_guide(way):
    def guide(x):
        a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
        branch = numpyro.sample("branch", dist.Bernoulli(logits=a))
        high_or_low(dist.Normal(c * x + a, 1.0), dist.Normal(c, 0.5))[way](branch)

    return guide


def in_the_way_of(way, draws):
    """The draws of the Python version, as another one names them."""
    stacked = {name: jnp.stack([d.latents[name] for d in draws]) for name in ("branch", "z")}
    if way == "mask":  # the site that is not taken has some value or other
        z, high = stacked.pop("z"), stacked["branch"] == 1
        stacked |= {"z_high": jnp.where(high, z, 7.0), "z_low": jnp.where(high, -7.0, z)}
    return stacked


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cond", "mask"])
def test_compiled_branches_have_the_gradients_of_python_branches(way):
    x, num = 1.3, 6
    python = branching_model("python"), branching_guide("python")
    compiled = branching_model(way), branching_guide(way)
    in_python = programs_of(*python, THETA, PHI, x)
    draws = draws_alone(in_python, num)
    assert {int(d.latents["branch"]) for d in draws} == {0, 1}
    dreams = [DreamParticle().dream(in_python, Index(number))[1] for number in range(num)]
    dreamt = in_the_way_of(way, [d.draws for d in dreams]), {"x": jnp.stack([d.data["x"] for d in dreams])}

    def losses_of(particles, asleep):
        return theta_loss(particles), score.phi_loss(particles), dream_loss(asleep)

    def by_python(theta, phi):
        programs_ = in_python.with_params((theta, phi))
        particles = [WakeParticle().score(programs_, Index(k, alone=True), d) for k, d in enumerate(draws)]
        asleep = [DreamParticle().score(programs_, Index(k, alone=True), d) for k, d in enumerate(dreams)]
        return losses_of(side_by_side(particles), side_by_side(asleep))

    def by_way(theta, phi):
        programs_ = programs_of(*compiled, theta, phi, x)
        particles = oracles.score(programs_, in_the_way_of(way, draws))
        return losses_of(particles, oracles.score_dreams(programs_, *dreamt))

    values_and_grads = lambda losses: (losses(THETA, PHI), jax.jacobian(losses, argnums=(0, 1))(THETA, PHI))
    found = jax.jit(lambda: values_and_grads(by_way))()
    chex.assert_trees_all_close(found, values_and_grads(by_python), rtol=2e-5, atol=1e-6)


# A number of sites that is itself random


def geometric_model(x):
    """Toss until heads; the data are near the number of tails."""
    p = numpyro.param("p", 0.5)
    number = 0
    while numpyro.sample(f"heads_{number}", dist.Bernoulli(p)) == 0:
        number += 1
    numpyro.sample("x", dist.Normal(float(number), 1.0), obs=x)


def geometric_guide(x):
    a = numpyro.param("a", -0.5)
    number = 0
    while numpyro.sample(f"heads_{number}", dist.Bernoulli(logits=a + 0.5 * number - 0.2 * x)) == 0:
        number += 1


def numbers_of(draws):
    return jnp.array([len(d.latents) - 1.0 for d in draws])


def geometric_log_p(theta, n, x):
    return n * jnp.log1p(-theta["p"]) + jnp.log(theta["p"]) + norm.logpdf(x, n)


def geometric_log_q(phi, n, x):
    tails = lambda i: jax.nn.log_sigmoid(-(phi["a"] + 0.5 * i - 0.2 * x))
    before = jnp.array([sum([tails(i) for i in range(int(k))], jnp.zeros(())) for k in n])
    return before + jax.nn.log_sigmoid(phi["a"] + 0.5 * n - 0.2 * x)


@pytest.mark.parametrize("delta", [0.0, pytest.param(0.4, marks=pytest.mark.floors)])
def test_a_geometric_number_of_sites_is_scored_as_by_hand(delta):
    x, num, theta, phi = 2.0, 6, {"p": jnp.array(0.4)}, {"a": jnp.array(-0.5)}
    n = numbers_of(draws_alone(programs_of(geometric_model, geometric_guide, theta, phi, x), num, delta))
    assert len(set(n.tolist())) > 2

    def by_hand(theta, phi, loss):
        log_p, log_q = geometric_log_p(theta, n, x), geometric_log_q(phi, n, x)
        log_u = log_p - norm.logpdf(x, n)
        return loss(log_p, log_q, oracles.mixture(log_q, log_u, delta) if delta else None)

    def package(theta, phi, loss, **options):
        programs_ = seeded(geometric_model, geometric_guide)
        return loss(theta, phi, *programs_, x, num_particles=num, vectorize_particles=False, defensive=delta, **options)

    grad = lambda evaluate, *args: jax.value_and_grad(evaluate, argnums=(0, 1))(theta, phi, *args)
    found = grad(package, rws_jax.wake_theta_loss), grad(package, rws_jax.wake_phi_loss)
    with_baseline = lambda *densities: oracles.phi_loss(*densities, control_variate=True)
    expected = grad(by_hand, oracles.theta_loss), grad(by_hand, with_baseline)
    chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_a_geometric_number_of_sites_trains():
    """The posterior of stopping at the first toss, by summing over the number of tails, pulls the guide."""
    weights = jnp.array([0.5 ** (n + 1) * norm.pdf(0.0, n) for n in range(20)])
    heads_at_once = weights[0] / weights.sum()

    def guide(x):
        a = numpyro.param("a", -1.5)
        number = 0
        while numpyro.sample(f"heads_{number}", dist.Bernoulli(logits=a if number == 0 else 0.0)) == 0:
            number += 1

    rws = rws_jax.make_step(
        geometric_model, guide, num_particles=5, insomnia=0.9, vectorize_particles=False,
        theta_optimizer=optax.set_to_zero(), phi_optimizer=optax.sgd(2.0),
    )  # fmt: skip
    state = rws.init(jax.random.key(0), 0.0)
    for _ in range(10):
        state, info = rws.step(state, 0.0)
        assert bool(info.finite)
    expected = 0.9 * heads_at_once + 0.1 * 0.5  # dreams stop at once as often as the prior does
    assert jnp.abs(jax.nn.sigmoid(rws.get_params(state, 0.0)["a"]) - expected) < 0.15
    assert info.ess_mean.shape == ()
    assert state.theta.keys() == {"p"}


# The rest of the contract


def test_parameters_of_branches_are_all_found_by_init():
    def guide(x):
        branch = numpyro.sample("branch", dist.Bernoulli(0.5))
        loc = numpyro.param("high" if branch == 1 else "low", 1.0)
        numpyro.sample("z", dist.Normal(loc, 1.0))

    rws = rws_jax.make_step(branching_model("python"), guide, num_particles=6, vectorize_particles=False)
    state = rws.init(jax.random.key(0), 1.3)
    assert state.phi.keys() == {"high", "low"}
    state, _ = rws.step(state, 1.3)
    assert rws.get_params(state, 1.3).keys() == {"mu", "high", "low"}
    phi = {"high": jnp.zeros(())}
    state = state._replace(phi=phi, phi_opt_state=optax.adam(1e-3).init(phi))
    with pytest.raises(ValueError, match="param site 'low' of the guide has no value in phi"):
        rws.step(state, 1.3)


def test_parameters_that_are_never_met_are_named():
    rws = rws_jax.make_step(models.one_model, models.one_guide)
    state = rws.init(jax.random.key(0), 1.3)
    with pytest.raises(ValueError, match=r"param sites \['other'\] of the state were not met"):
        rws.get_params(state._replace(phi=state.phi | {"other": jnp.zeros(())}), 1.3)


def test_python_branches_are_refused_where_particles_are_mapped_over():
    with pytest.raises(TypeError, match="cannot be compiled") as error:
        rws_jax.make_step(branching_model("python"), branching_guide("python")).init(jax.random.key(0), 1.3)
    for remedy in ("vectorize_particles=False", "cond", "mask"):
        assert remedy in str(error.value)


@pytest.mark.slow
def test_the_state_is_the_same_with_and_without_mapping_over_particles():
    steps = {}
    for vectorize in (True, False):
        rws = rws_jax.make_step(
            models.one_model, models.one_guide, insomnia=0.5, phi_steps=2, defensive=0.5,
            vectorize_particles=vectorize,
            theta_optimizer=optax.sgd(0.1), phi_optimizer=optax.sgd(0.1),
        )  # fmt: skip
        state, info = rws.step(rws.init(jax.random.key(0), 1.3), 1.3)
        steps[vectorize] = state._replace(rng_key=jax.random.key_data(state.rng_key)), info
    chex.assert_trees_all_close(steps[True], steps[False], rtol=1e-5, atol=1e-6)


def test_programs_that_branch_are_one_unit():
    """What is in the plate decides whether there is another site: its elements do not weigh for themselves."""

    def program(observed):
        def run(x):
            with numpyro.plate("data", 2):
                z = numpyro.sample("z", dist.Bernoulli(0.5))
                if observed:
                    numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)
                if int(z.sum()) == 1:
                    numpyro.sample("e", dist.Bernoulli(0.5))

        return run

    x, num = jnp.array([0.0, 2.0]), 6
    programs_ = programs_of(program(True), program(False), {}, {}, x)
    for delta in (0.0, 0.5):
        draws = draws_alone(programs_, num, delta)
        assert {len(d.latents) for d in draws} == {1, 2}
        particles = OneByOne()(WakeParticle(delta), programs_, num)
        z = jnp.stack([d.latents["z"] for d in draws])
        assert jnp.allclose(particles.log_weights, norm.logpdf(x[None], 2.0 * z).sum(axis=1), rtol=1e-5)


def test_a_branch_may_leave_the_plate():
    """All sites of some particles are in the plate, and of others not: all is one unit, of scale one in both cases."""

    def program(observed):
        def run(x):
            with numpyro.plate("data", 2):
                z = numpyro.sample("z", dist.Bernoulli(0.5))
                if observed:
                    numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)
            if observed and int(z.sum()) == 1:
                numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.3)

        return run

    x, num = jnp.array([0.0, 2.0]), 6
    programs_ = programs_of(program(True), program(False), {}, {}, x)
    z = jnp.stack([d.latents["z"] for d in draws_alone(programs_, num)])
    one = z.sum(axis=1) == 1
    assert {bool(value) for value in one} == {True, False}
    expected = norm.logpdf(x[None], 2.0 * z).sum(axis=1) + jnp.where(one, norm.logpdf(0.3), 0.0)
    assert jnp.allclose(OneByOne()(WakeParticle(), programs_, num).log_weights, expected, rtol=1e-5)


def test_programs_must_be_seeded():
    with pytest.raises(TypeError, match="the guide is not seeded"):
        rws_jax.wake_phi_loss(
            {"p": 0.5}, {"a": 0.0}, seed(geometric_model, 0), geometric_guide, 1.0, vectorize_particles=False
        )


def by_chance(x, observe=True):
    """A coin decides whether all sites are in the plate; which units there are would depend on how it falls."""
    coin = numpyro.sample("coin", dist.Bernoulli(0.5))
    with numpyro.plate("data", 2):
        numpyro.sample("z", dist.Normal(0.0, 1.0 + int(coin)))
        if observe:
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def by_chance_in_plate(x, observe=True):
    """The same, but for the sites themselves."""
    with numpyro.plate("data", 2):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("high" if int(z.sum()) else "low", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("model", [by_chance, by_chance_in_plate])
def test_what_a_unit_is_does_not_depend_on_what_particles_draw(model):
    for number in range(4):
        guide = partial(model, observe=False)
        programs_ = programs_of(seed(model, number), seed(guide, number), {}, {}, jnp.zeros(2))
        scored = OneByOne()(WakeParticle(), programs_, 2)
        assert scored.units.shape == ()
        assert scored.log_p.shape == (2,)
    assert OneByOne().runs_alone(WakeParticle(), programs_)
    assert not OneByOne().runs_alone(WakeParticle(), models_in_plate())


def models_in_plate():
    def model(x):
        with numpyro.plate("data", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Bernoulli(0.3))

    return programs_of(model, guide, {}, {}, jnp.zeros(2))


def sized(prob):
    """A plate of the size that a datum says; the program can be traced, but not with unknown data."""

    def program(row):
        with numpyro.plate("trials", int(row[0])):
            z = numpyro.sample("z", dist.Bernoulli(prob))
            if prob == 0.5:
                numpyro.sample("x", dist.Normal(z, 1.0), obs=row[1 : 1 + int(row[0])])

    return program


def test_data_that_differ_in_their_plates_are_a_unit_each_and_defensive_particles_come_whole():
    """With r the mixture of both programs' densities of the whole, w = p / r is what it is by hand."""
    rows = jnp.array([[2.0, 0.3, -0.5, 0.0], [3.0, 0.3, -0.5, 1.0]])
    programs_ = programs_of(sized(0.5), sized(0.2), {}, {}, rows)
    delta, num = 0.4, 3
    executor = OneByOne(Data(0))
    scored = executor(WakeParticle(delta), programs_, num)
    assert scored.log_p.shape == (num, 2)
    for datum in range(2):
        of_one = executor.data.take(programs_, datum)
        for number in range(num):
            z = WakeParticle(delta).draw(of_one, Index(number, datum, alone=True)).latents["z"]
            log_q, log_u = (dist.Bernoulli(prob).log_prob(z).sum() for prob in (0.2, 0.5))
            expected = jnp.log((1 - delta) * jnp.exp(log_q) + delta * jnp.exp(log_u))
            assert jnp.allclose(scored.log_r[number, datum], expected, rtol=1e-5)
