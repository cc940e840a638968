"""Particles outside of the support and numbers that are not finite: none gets into the state, and the info tells."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import seed

import rws_jax
from rws_jax.estimators import score
from rws_jax.estimators.bound import theta_loss
from tests import oracles
from tests.training.test_step import again, gradients_of

pytestmark = [
    pytest.mark.usefixtures("allow_rank_promotion"),
    pytest.mark.filterwarnings("ignore:the guide .* reads no data"),
]
X = jnp.array([0.4, 0.9])
NUM_PARTICLES = 6
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # the latter to jax 0.7

# name -> prior and guide distribution, whether draws lie inside of the prior's support, a number that the data are near
NARROWER = {
    "gamma": (lambda t: dist.Uniform(0.0, 1.0 + t), lambda f: dist.Gamma(2.0, jnp.exp(f)), lambda z: z < 1.2),
    "lognormal": (lambda t: dist.Uniform(0.0, 1.0 + t), lambda f: dist.LogNormal(f, 1.0), lambda z: z < 1.2),
    "uniform": (
        lambda t: dist.Beta(2.0, 2.0 + t),
        lambda f: dist.Uniform(-1.0, 2.0 + 0.0 * f),
        lambda z: (z > 0) & (z < 1),
    ),
    "exponential": (
        lambda t: dist.TruncatedNormal(t, 1.0, low=0.5),
        lambda f: dist.Exponential(jnp.exp(f)),
        lambda z: z > 0.5,
    ),
    "normal": (lambda t: dist.Gamma(2.0, 1.0 + t), lambda f: dist.Normal(f, 1.0), lambda z: z > 0),
    "categorical": (
        lambda t: dist.Categorical(logits=jnp.array([0.0, 0.5]) * t),
        lambda f: dist.Categorical(logits=jnp.arange(4.0) * f),
        lambda z: z < 2,
    ),
    "poisson": (lambda t: dist.Binomial(3, 0.4 + t), lambda f: dist.Poisson(jnp.exp(f)), lambda z: z <= 3),
}


def prior_program(prior, x):
    t = numpyro.param("t", 0.2)
    with numpyro.plate("data", 2):
        z = numpyro.sample("z", prior(t))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def proposal_program(proposal, x):
    f = numpyro.param("f", 0.3)
    with numpyro.plate("data", 2):
        numpyro.sample("z", proposal(f))


def draws_of_steps(guide):
    """What the guide draws in the step from a state, as a compiled function of that state."""

    @jax.jit
    def draws_of_step(state):
        rng_key = jax.random.split(jax.random.split(jax.random.clone(state.rng_key))[1], 4)[1]
        return oracles.draw(oracles.programs_of(guide, seed(guide, rng_key), {}, state.phi, X), NUM_PARTICLES)

    return draws_of_step


FAST = "exponential", "gamma", "categorical"


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NARROWER])
def test_particles_outside_of_a_narrower_model_weigh_nothing_and_are_counted(name):
    """Values and gradients are those of the particles inside, with K as divisor, and of the baseline of all."""
    prior, proposal, is_inside = NARROWER[name]
    model, guide = partial(prior_program, prior), partial(proposal_program, proposal)
    rws = rws_jax.make_step(
        model, guide, num_particles=NUM_PARTICLES, theta_optimizer=optax.scale(1.0), phi_optimizer=optax.scale(1.0)
    )
    # A start at which every datum has particles both inside and outside.
    state, draws_of_step = rws.init(jax.random.key(0), X), draws_of_steps(guide)
    for number in range(50):
        state = state._replace(rng_key=jax.random.key(number))
        z = draws_of_step(state).latents["z"]
        inside = is_inside(z)
        if jnp.all(jnp.sum(inside, axis=0) >= 2) and not jnp.all(inside):
            break
    theta_grad, phi_grad, info = gradients_of(rws, state, X)
    assert int(info.num_dead_particles) == int(jnp.sum(~inside)) > 0
    assert int(info.num_dead_units) == 0
    assert bool(info.finite)

    def by_hand(theta, phi, loss, **options):
        safe = jnp.where(inside, z, z[jnp.argmax(inside[:, 0]), 0])
        log_p = prior(theta["t"]).log_prob(safe) + dist.Normal(safe, 1.0).log_prob(X[None])
        return loss(jnp.where(inside, log_p, -jnp.inf), proposal(phi["f"]).log_prob(z), **options)

    params = state.plain[:2]
    theta_loss, expected = jax.jit(jax.value_and_grad(partial(by_hand, loss=oracles.theta_loss)))(*params)
    chex.assert_trees_all_close((info.wake_theta_loss, theta_grad), (theta_loss, expected), rtol=2e-5, atol=1e-6)
    with_baseline = partial(oracles.phi_loss, control_variate=True)
    phi_loss, expected = jax.jit(jax.value_and_grad(partial(by_hand, loss=with_baseline), argnums=1))(*params)
    chex.assert_trees_all_close((info.wake_phi_loss, phi_grad), (phi_loss, expected), rtol=2e-5, atol=1e-6)


def dirichlet_model(x):
    """The datum must be below the first weight."""
    with numpyro.plate("data", 2):
        z = numpyro.sample("z", dist.Dirichlet(jnp.exp(numpyro.param("t", jnp.zeros(3)))))
        numpyro.sample("x", dist.Uniform(0.0, z[..., 0]), obs=x)


def dirichlet_guide(x):
    with numpyro.plate("data", 2):
        numpyro.sample("z", dist.Dirichlet(jnp.exp(numpyro.param("f", jnp.ones(3)))))


@pytest.mark.slow
def test_draws_of_a_simplex_that_rule_out_the_data_weigh_nothing():
    rws = rws_jax.make_step(
        dirichlet_model, dirichlet_guide, num_particles=NUM_PARTICLES,
        theta_optimizer=optax.scale(1.0), phi_optimizer=optax.scale(1.0),
    )  # fmt: skip
    x = jnp.array([0.3, 0.999])  # the second rules out almost every draw
    state = rws.init(jax.random.key(0), x)
    z = draws_of_steps(dirichlet_guide)(state).latents["z"]
    inside = z[..., 0] >= x[None]
    assert 2 <= int(inside[:, 0].sum()) < NUM_PARTICLES
    assert int(inside[:, 1].sum()) == 0
    theta_grad, phi_grad, info = gradients_of(rws, state, x)
    assert int(info.num_dead_particles) == int(jnp.sum(~inside))
    assert int(info.num_dead_units) == 1

    def by_hand(theta, phi, loss, **options):
        log_p = dist.Dirichlet(jnp.exp(theta["t"])).log_prob(z) - jnp.log(z[..., 0])
        log_q = dist.Dirichlet(jnp.exp(phi["f"])).log_prob(z)
        return loss(jnp.where(inside, log_p, -jnp.inf)[:, 0], log_q[:, 0], **options)  # the second unit is dead

    expected = jax.jit(jax.grad(partial(by_hand, loss=oracles.theta_loss)))(*state.plain[:2])
    chex.assert_trees_all_close(theta_grad, expected, rtol=1e-4)
    with_baseline = partial(oracles.phi_loss, control_variate=True)
    expected = jax.jit(jax.grad(partial(by_hand, loss=with_baseline), argnums=1))(*state.plain[:2])
    chex.assert_trees_all_close(phi_grad, expected, rtol=1e-4)


@pytest.mark.parametrize("options", [{"defensive": 0.3, "phi_steps": 2}, {"insomnia": 0.5}], ids=str)
@pytest.mark.parametrize("bad", ["datum", "theta", "phi"])
def test_a_number_that_is_not_finite_leaves_the_state_bit_for_bit(options, bad):
    """Infinite parameters; a datum that is NaN is one that the model cannot produce, so its unit is dead.

    The step after, with good numbers, is an ordinary one.
    """
    prior, proposal, _ = NARROWER["lognormal"]
    rws = rws_jax.make_step(
        partial(prior_program, prior), partial(proposal_program, proposal), num_particles=20, **options
    )
    state = rws.init(jax.random.key(0), X)
    state, _ = rws.step(state, X)  # Adam has momentum now
    start, x = state, X
    if bad == "datum":
        x = X.at[1].set(jnp.nan)
    elif bad == "theta":
        start = state._replace(theta={"t": jnp.array(jnp.inf)})
    else:
        start = state._replace(phi={"f": jnp.array(jnp.inf)})
    after, info = rws.step(again(start), x)
    if bad == "datum":
        assert int(info.num_dead_units) == 1
        assert bool(info.finite)
        assert jnp.isfinite(after.phi["f"])
        assert after.phi["f"] != start.phi["f"]  # the other datum trains
    else:
        assert not bool(info.finite)
        chex.assert_trees_all_equal(after[:4], start[:4])
    _, info = rws.step(after._replace(theta=state.theta, phi=state.phi), X)
    assert bool(info.finite)


# Modes of JAX


def narrow_step(**options):
    prior, proposal, _ = NARROWER["gamma"]
    model, guide = partial(prior_program, prior), partial(proposal_program, proposal)
    return rws_jax.make_step(model, guide, num_particles=NUM_PARTICLES, insomnia=0.5, **options)


@pytest.mark.slow
def test_dead_particles_pass_debug_nans():
    """Each primitive is checked: no NaN arises on the way either, compiled or not."""
    rws = narrow_step()
    with jax.debug_nans(True):
        state, info = rws.step(rws.init(jax.random.key(0), X), X)
        assert int(info.num_dead_particles) > 0
        prior, proposal, _ = NARROWER["gamma"]
        programs_ = (
            seed(partial(prior_program, prior), 0),
            seed(partial(proposal_program, proposal), 1),
        )
        for loss in (rws_jax.wake_theta_loss, rws_jax.wake_phi_loss):
            value = lambda t, f, loss=loss: loss(t, f, *programs_, X, num_particles=NUM_PARTICLES)
            assert jnp.isfinite(value(*state.plain[:2]))
            jax.grad(value, argnums=(0, 1))(*state.plain[:2])


@pytest.mark.slow
def test_no_tracer_leaks():
    with jax.checking_leaks():
        rws = narrow_step(defensive=0.3, phi_steps=2)
        state = rws.init(jax.random.key(0), X)
        _, info = rws.step(state, X)
    assert bool(info.finite)


@pytest.mark.slow
def test_double_precision_gives_the_same_numbers_more_exactly():
    """Of the same draws; a step in double precision keeps its type."""
    model, guide = (
        partial(prior_program, lambda t: dist.Normal(t, 1.0)),
        partial(proposal_program, lambda f: dist.Normal(f, jnp.exp(f))),
    )
    losses = {}
    for enabled in (False, True):
        with enable_x64(enabled):
            x = jnp.array([0.4, 0.9])
            programs_ = oracles.programs_of(seed(model, 0), seed(guide, 1), {"t": 0.2}, {"f": 0.3}, x)
            z = jnp.linspace(-1.5, 2.0, 2 * NUM_PARTICLES).reshape(NUM_PARTICLES, 2)
            particles = oracles.score(programs_, {"z": z})
            losses[enabled] = float(theta_loss(particles)), float(score.phi_loss(particles))
            rws = rws_jax.make_step(model, guide)
            state, info = rws.step(rws.init(jax.random.key(0), x), x)
            assert state.phi["f"].dtype == (jnp.float64 if enabled else jnp.float32)
            assert info.wake_theta_loss.dtype == state.phi["f"].dtype
    assert losses[True] != losses[False]
    assert np.allclose(losses[True], losses[False], rtol=1e-5)


@pytest.mark.slow
def test_eager_compiled_and_scanned_steps_agree():
    rws = narrow_step(defensive=0.3, phi_steps=2)
    state = rws.init(jax.random.key(0), X)
    with jax.disable_jit():
        eager, _ = rws.step(again(state), X)
    compiled, _ = rws.step(again(state), X)
    scanned, _ = jax.lax.scan(lambda s, _: rws.step(s, X), again(state), None, length=1)
    for other in (compiled, scanned):
        chex.assert_trees_all_close(eager[:4], other[:4], rtol=2e-5, atol=1e-6)
        assert jnp.array_equal(jax.random.key_data(eager.rng_key), jax.random.key_data(other.rng_key))
