"""Particles that are resampled in time, against exact evidence and a particle filter written out by hand."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import scan

from rws_jax.estimators import score, weights
from rws_jax.estimators.bound import theta_loss
from rws_jax.estimators.resampled import ResampledParticle
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.data import Data
from rws_jax.execution.vectorized import Vectorized
from rws_jax.programs.program import Arguments, Program, Programs
from tests import models

ALWAYS, HALF, NEVER = 1.1, 0.5, 0.0
ORDINARY = WakeParticle()


class Path(NamedTuple):
    latents: dict
    log_weight: jax.Array
    recorded: Any


class Weighed:
    """The paths of a particle, with what was recorded of them."""

    def __init__(self, below):
        self.particle = ResampledParticle(ORDINARY, below)

    def __call__(self, programs, index):
        draws, log_weight, *_ = self.particle.weighed_draw(programs, index)
        _, recorded, _ = self.particle.run(self.particle.lockstep(programs, index), programs, index)
        return Path(draws.latents, log_weight, recorded)


def programs_of(model, guide, theta, phi, rng_key, *args):
    keys = jax.random.split(rng_key)
    of = lambda fn, role, key, params: Program(fn, role, key, params, mutable_state={})
    both = of(model, "model", keys[0], theta), of(guide, "guide", keys[1], phi)
    return Programs(*both, None, Arguments.of(args, {}))


def run(particle, model, guide, theta, phi, num, *args, seed=0, data=None):
    rng_key = jax.random.key(seed) if isinstance(seed, int) else seed
    return Vectorized(data or Data())(particle, programs_of(model, guide, theta, phi, rng_key, *args), num)


def resampled(below, *args, **kwargs):
    return run(ResampledParticle(ORDINARY, below), *args, **kwargs)


# ---- no resampling: the ordinary particles

X = jnp.array([0.4, -0.3, 1.1, 0.6, -0.8])


def walk_model(x):
    """A scale and a start before the scan, a carry that is a dict and starts from numbers, two latents a step."""
    mu = numpyro.param("mu", 0.2)
    scale = numpyro.sample("scale", dist.Gamma(2.0, 2.0))
    start = numpyro.sample("start", dist.Normal(mu, 1.0))
    numpyro.sample("first", dist.Normal(start, scale), obs=0.3)

    def step(carry, x):
        z = numpyro.sample("z", dist.Normal(0.8 * carry["z"] + mu, scale).expand((2,)).to_event(1))
        kind = numpyro.sample("kind", dist.Bernoulli(0.3))
        z = z + kind[None]
        numpyro.sample("x", dist.Normal(z.sum(), jnp.exp(0.1 * carry["t"])), obs=x)
        return {"z": z, "t": carry["t"] + 1}, z

    scan(step, {"z": jnp.full(2, start), "t": 0}, x)


def walk_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    scale = numpyro.sample("scale", dist.LogNormal(c - 1.0, 0.5))
    start = numpyro.sample("start", dist.Normal(a, 1.0))

    def step(carry, x):
        z = numpyro.sample("z", dist.Normal(c * carry + a * x, 0.7 + scale).expand((2,)).to_event(1))
        numpyro.sample("kind", dist.Bernoulli(logits=a * z.sum() + start))
        return z.sum(), None

    scan(step, start, x)


def backward_model(x):
    mu = numpyro.param("mu", 0.2)

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(0.8 * z + mu, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
        return z, None

    scan(step, 0.0, x, reverse=True)


THETA, PHI = {"mu": 0.3}, {"a": 0.4, "c": 0.6}
CASES = {
    "scan": (models.scan_model, models.scan_guide),
    "reversed": (backward_model, models.reversed_guide),
    "cond in scan": (models.switching_model, models.switching_guide),
    "before the scan": (walk_model, walk_guide),
    "scaled": (numpyro.handlers.scale(models.scan_model, 0.5), models.scan_guide),
    "conditioned": (
        numpyro.handlers.condition(partial(models.scan_model, observed=False), data={"x": X}),
        models.scan_guide,
    ),
}


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.slow] * (name != "scan")) for name in CASES])
def test_without_resampling_draws_and_weights_are_those_of_ordinary_particles(case):
    model, guide = CASES[case]

    def of(particle, theta):
        found = run(particle, model, guide, theta, PHI, 6, X)
        if isinstance(particle, WakeParticle):
            return theta_loss(found), found.log_weights
        return -weights.bound(found.log_weight), found.log_weight

    @jax.jit
    def both(theta):
        gradients = [
            jax.value_and_grad(partial(of, which), has_aux=True)(theta) for which in (ORDINARY, Weighed(NEVER))
        ]
        draws = run(lambda programs, index: ORDINARY.draw(programs, index), model, guide, theta, PHI, 6, X)
        return gradients, draws.latents, run(Weighed(NEVER), model, guide, theta, PHI, 6, X).latents

    ((loss, log_w), slope), ((own_loss, own_log_w), own_slope) = (gradients := both(THETA))[0]
    np.testing.assert_allclose(own_log_w, log_w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(own_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(own_slope["mu"], slope["mu"], rtol=1e-4, atol=1e-5)
    for name, value in gradients[1].items():
        np.testing.assert_allclose(gradients[2][name], value, rtol=1e-6, atol=1e-6, err_msg=name)


# ---- exact evidence: a hidden Markov model whose tables depend on a latent before the scan

Y = jnp.array([0, 2, 1, 1, 2])
START = jnp.array([0.5, 0.3, 0.2])
MOVES = jnp.array(
    [[[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], [[0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]]]
)
SHOWS = jnp.array(
    [[[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]], [[0.2, 0.6, 0.2], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1]]]
)


def hidden_model(y):
    regime = numpyro.sample("regime", dist.Bernoulli(0.4))
    moves, shows = MOVES[regime], SHOWS[regime]  # closed over, and of a particle

    def step(carry, y):
        state, is_first = carry
        state = numpyro.sample("state", dist.Categorical(jnp.where(is_first, START, moves[state])))
        numpyro.sample("y", dist.Categorical(shows[state]), obs=y)
        return (state, False), None

    scan(step, (0, True), y)


def hidden_guide(y):
    regime = numpyro.sample("regime", dist.Bernoulli(0.5))

    def step(state, y):
        logits = jnp.where(regime == 1, 0.3, 1.0) * jnp.arange(3.0) * jnp.where(y == 2, 1.0, -0.5) + 0.2 * state
        return numpyro.sample("state", dist.Categorical(logits=logits)), None

    scan(step, 0, y)


def forward(y):
    """Evidence, and the posterior of the regime and of the last state: by the forward algorithm, for each regime."""
    joint = []
    for prior, moves, shows in zip((0.6, 0.4), np.asarray(MOVES), np.asarray(SHOWS), strict=True):
        alpha = prior * np.asarray(START) * shows[:, y[0]]
        for shown in y[1:]:
            alpha = (alpha @ moves) * shows[:, shown]
        joint.append(alpha)
    joint = np.stack(joint)
    return joint.sum(), joint.sum(axis=1)[1] / joint.sum(), joint.sum(axis=0) / joint.sum()


@pytest.mark.parametrize(("below", "num"), [(ALWAYS, 2), pytest.param(0.7, 5, marks=pytest.mark.slow)])
def test_evidence_is_unbiased_and_paths_are_properly_weighted(below, num):
    """Within 5 standard errors; what particles close over moves with them, or the evidence is another one."""
    evidence, regime, last = forward(np.asarray(Y))

    def of(rng_key):
        weighed = run(Weighed(below), hidden_model, hidden_guide, {}, {}, num, Y, seed=rng_key)
        w = jnp.exp(weighed.log_weight) / num
        state = weighed.latents["state"]
        return w.sum(), (w * weighed.latents["regime"]).sum(), (w * (state[:, -1] == 2)).sum()

    found = np.stack(jax.jit(jax.vmap(of))(jax.random.split(jax.random.key(1), 20_000)))
    errors = found.std(axis=1) / np.sqrt(found.shape[1])
    exact = evidence * np.array([1.0, regime, last[2]])
    assert (np.abs(found.mean(axis=1) - exact) < 5 * errors).all(), (found.mean(axis=1), exact, errors)
    assert (errors < 0.05 * exact).all()


# ---- a particle filter written out by hand, from the same draws

AT = jnp.array([0.5, 2.0, -1.0, 0.3, 4.0, 3.0])


def linear_model(x):
    a, start = numpyro.param("a", 0.9), numpyro.param("start", 0.1)

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(a * z, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
        return z, None

    scan(step, start, x)


def linear_guide(x):
    b, c = numpyro.param("b", 0.5), numpyro.param("c", 0.3)

    def step(carry, x):
        z, h = carry
        h = jnp.tanh(c * h + 0.1 * z)  # recurrent, so that gradients pass through the carry
        z = numpyro.sample("z", dist.Normal(b * x + h, 1.0))
        return (z, h), None

    scan(step, (0.0, 0.0), x)


def by_hand(theta, phi, z, x, uniforms, below):
    """Both losses of given draws, ``(time, particles)``, and the ancestors; phi's with and without control variate."""
    num = z.shape[1]
    previous, guide_previous, h, path = jnp.full(num, theta["start"]), jnp.zeros(num), jnp.zeros(num), jnp.zeros(num)
    offset = np.zeros(num)  # of a particle's log-weight against that of its path, in which all resampling is
    phi_loss, control, all_ancestors = 0.0, 0.0, []
    for t in range(len(z)):
        h = jnp.tanh(phi["c"] * h + 0.1 * guide_previous)
        log_q = norm.logpdf(z[t], phi["b"] * x[t] + h, 1.0)
        log_p = norm.logpdf(z[t], theta["a"] * previous, 1.0) + norm.logpdf(x[t], z[t], 0.5)
        path = path + log_p - jax.lax.stop_gradient(log_q)
        log_w = path + offset
        w = jax.lax.stop_gradient(jax.nn.softmax(log_w))
        phi_loss, control = phi_loss - (w * log_q).sum(), control - ((w - 1 / num) * log_q).sum()
        ancestors = np.arange(num)
        if t < len(z) - 1 and 1 / (w**2).sum() < below * num:
            shares = np.cumsum(np.asarray(w, np.float64))
            ancestors = np.array([np.argmax(shares > (k + float(uniforms[t])) / num) for k in range(num)])
            path = path[ancestors]
            offset = jax.lax.stop_gradient(logsumexp(log_w) - jnp.log(num) - path)
        previous, guide_previous, h = z[t][ancestors], z[t][ancestors], h[ancestors]
        all_ancestors.append(ancestors)
    return -(logsumexp(path + offset) - jnp.log(num)), phi_loss, control, np.stack(all_ancestors)


@pytest.mark.floors
@pytest.mark.parametrize("below", [pytest.param(ALWAYS, marks=pytest.mark.slow), HALF])
def test_losses_and_gradients_are_those_of_a_particle_filter_by_hand(below):
    theta, phi, num = {"a": 0.8, "start": 0.4}, {"b": 0.6, "c": 0.9}, 7
    programs = programs_of(linear_model, linear_guide, theta, phi, jax.random.key(3), AT)
    resampling_key = jax.random.fold_in(programs.guide.rng_key, 0xFFFFFFFE)
    uniforms = [jax.random.uniform(jax.random.fold_in(resampling_key, t)) for t in range(len(AT))]

    def losses(theta, phi):
        scored = resampled(below, linear_model, linear_guide, theta, phi, num, AT, seed=3)
        return theta_loss(scored), score.plain_phi_loss(scored), score.phi_loss(scored)

    found, gradients = jax.jit(lambda *params: (losses(*params), jax.jacrev(losses, argnums=(0, 1))(*params)))(
        theta, phi
    )
    recorded = jax.jit(lambda: run(Weighed(below), linear_model, linear_guide, theta, phi, num, AT, seed=3))().recorded
    hand = partial(by_hand, z=recorded.latents["z"].T, x=AT, uniforms=uniforms, below=below)
    *expected, ancestors = hand(theta, phi)
    np.testing.assert_array_equal(recorded.ancestor.T, ancestors)
    assert (ancestors != np.arange(num)).any()
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-5)
    slopes = [jax.grad(lambda *params, n=n: hand(*params)[n], argnums=(0, 1))(theta, phi) for n in range(3)]
    for (of_theta, of_phi), (slope_theta, slope_phi), owner in zip(gradients, slopes, "tpp", strict=True):
        for own, exact, others in ((of_theta, slope_theta, owner == "p"), (of_phi, slope_phi, owner == "t")):
            for name in own:  # what a loss does not train has a gradient of exactly zero
                expected_slope = 0.0 if others else exact[name]
                np.testing.assert_allclose(
                    own[name], expected_slope, rtol=0 if others else 2e-4, atol=0 if others else 1e-5
                )


def kalman(a, start, x):
    """Log evidence of the linear model in nats."""
    mean, variance, total = start, 0.0, 0.0
    for value in x:
        mean, variance = a * mean, a**2 * variance + 1.0
        total = total + norm.logpdf(value, mean, jnp.sqrt(variance + 0.25))
        gain = variance / (variance + 0.25)
        mean, variance = mean + gain * (value - mean), (1.0 - gain) * variance
    return total


@pytest.mark.slow
@pytest.mark.parametrize("below", [ALWAYS, HALF])
def test_the_gradient_of_wake_theta_is_that_of_log_evidence(below):
    """With many particles; the gradient of the filter's own estimate would be elsewhere however many there are."""
    theta, phi, num = {"a": 0.3, "start": -2.0}, {"b": 0.6, "c": 0.9}, 300

    def loss(theta, key):
        programs = programs_of(linear_model, linear_guide, theta, phi, key, AT)
        return theta_loss(Vectorized()(ResampledParticle(ORDINARY, below), programs, num))

    exact = jax.grad(lambda theta: -kalman(theta["a"], theta["start"], AT))(theta)
    found = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(theta, jax.random.split(jax.random.key(0), 300))
    for name, slopes in found.items():
        error = float(slopes.std() / np.sqrt(len(slopes)))
        np.testing.assert_allclose(
            slopes.mean(), exact[name], rtol=1e-3, atol=5 * error
        )  # a bias of order 1/K, and noise
        assert error < 0.006 * abs(exact[name])


# ---- dead particles and units, many sequences, many devices


def bounded_model(x):
    """Latents that increase, by less than one at a step: a wider guide leaves the support."""
    mu = numpyro.param("mu", 0.2)

    def step(z, x):
        z = numpyro.sample("z", dist.Uniform(z, z + 1.0))
        numpyro.sample("x", dist.Normal(z + mu, 0.5), obs=x)
        return z, None

    scan(step, 0.0, x)


def wide_guide(x):
    a, shift = numpyro.param("a", 0.5), numpyro.param("c", 0.0)

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(z + a, 0.5 + shift**2))
        return z, None

    scan(step, 0.0, x)


def losses_of(scored):
    return {"theta": theta_loss(scored), "plain": score.plain_phi_loss(scored), "phi": score.phi_loss(scored)}


def slopes_of(found, losses=losses_of):
    return jax.jit(jax.jacrev(lambda theta, phi: losses(found(theta, phi)), argnums=(0, 1)))


@pytest.mark.slow
def test_dead_particles_are_replaced_and_dead_units_train_nothing():
    x = jnp.stack([0.5 * jnp.arange(1.0, 7.0), jnp.full(6, jnp.inf)])  # outside of every support: a dead unit
    found = partial(resampled, HALF, bounded_model, wide_guide)
    at = lambda x: lambda theta, phi: found(theta, phi, 20, x, data=Data(0))
    scored = jax.jit(at(x))(THETA, PHI)
    assert scored.log_weights.shape == (20, 2)
    assert scored.log_w.shape == scored.log_q.shape == (20, 2, 6)
    dead = np.asarray(scored.log_w) == -np.inf
    assert dead[:, 0].any()
    assert not dead[:, 0].all(axis=0).any()
    assert dead[:, 1].all()
    np.testing.assert_array_equal(scored.summary.num_alive, (~dead[:, :, -1]).sum(axis=0))
    assert scored.summary.effective_sample_size[1] == 0.0
    (term,) = scored.terms
    w = np.asarray(term.w)
    np.testing.assert_allclose(w.sum(axis=0), np.array([[1.0], [0.0]]) * np.ones(6), rtol=1e-5)
    assert (w[dead] == 0).all()
    assert (np.asarray(term.baseline)[:, 1] == 0).all()
    both, alone = slopes_of(at(x))(THETA, PHI), slopes_of(at(x[:1]))(THETA, PHI)
    for own, expected in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
        assert np.isfinite(own)
        np.testing.assert_allclose(own, expected, rtol=1e-5)


@pytest.mark.slow
def test_each_of_many_sequences_is_resampled_by_itself():
    """A datum's numbers are those that it has alone, under its own index."""
    x = jnp.stack([AT, 2.0 * AT, -AT])
    theta, phi = {"a": 0.8, "start": 0.4}, {"b": 0.6, "c": 0.9}
    found = partial(resampled, HALF, linear_model, linear_guide, theta, phi, 7)
    both = jax.jit(lambda x: (found(x, data=Data(0)), found(x[:1], data=Data(0)), found(x[1:2], data=Data(0))))
    together, first, second = both(x)
    np.testing.assert_allclose(together.log_w[:, :1], first.log_w, rtol=1e-5)
    assert (np.abs(together.log_w[:, 1:2] - second.log_w) > 1e-3).any()  # there it has another index
    assert together.log_weights.shape == (7, 3)
    assert together.summary.effective_sample_size.shape == (3,)
    assert len(set(np.asarray(weights.bound(together.log_weights)).tolist())) == 3


@pytest.mark.slow
def test_devices_divide_the_particles():
    mesh = jax.make_mesh((8,), ("particles",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("particles"))
    theta, phi = {"a": 0.8, "start": 0.4}, {"b": 0.6, "c": 0.9}

    def of(executor):
        def losses(theta, phi):
            programs = programs_of(linear_model, linear_guide, theta, phi, jax.random.key(3), AT)
            scored = executor(ResampledParticle(ORDINARY, HALF), programs, 16)
            return losses_of(scored), scored.log_w

        return jax.jit(lambda *params: (losses(*params), jax.jacrev(losses, argnums=(0, 1))(*params)[0]))(theta, phi)

    one, many = of(Vectorized()), of(Vectorized(particle_sharding=sharding))
    assert len(many[0][1].sharding.device_set) == 8
    for own, expected in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)
