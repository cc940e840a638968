"""Particles that are resampled in time, against answers that are exact: by enumeration, and by Kalman filters."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.nn import log_sigmoid
from numpyro.contrib.control_flow import scan

import rws_jax
from rws_jax.estimators import score, weights
from rws_jax.estimators.bound import theta_loss
from tests.estimators.test_resampled import ORDINARY, Weighed, resampled, run
from tests.posterior.exact import linear

# ---- two particles and two steps: all that can happen, with its probability

SEEN = jnp.array([1, 0])
THETA, PHI = {"stays": 0.6, "shows": 0.9}, {"loud": 0.3, "start": -0.4, "moves": 0.7, "reads": 0.5}


def log_bernoulli(logits, value):
    return log_sigmoid(jnp.where(value == 1, logits, -logits))


def chain_model(y, cannot=None):
    """Two states, and one more for all steps; in the state `cannot` nothing is ever seen at the first step."""
    stays, shows = numpyro.param("stays", 0.6), numpyro.param("shows", 0.9)
    g = numpyro.sample("g", dist.Bernoulli(0.5))

    def step(carry, y):
        z, t = carry
        z = numpyro.sample("z", dist.Bernoulli(logits=stays * (2.0 * z - 1.0)))
        numpyro.sample("y", dist.Bernoulli(logits=shows * (1.0 + g) * (2.0 * z - 1.0)), obs=y)
        if cannot is not None:
            numpyro.factor("cannot", jnp.where((z == cannot) & (t == 0), -jnp.inf, 0.0))
        return (z, t + 1), None

    scan(step, (0, 0), y)


def chain_guide(y, cannot=None):
    loud, start, moves, reads = (numpyro.param(name, value) for name, value in PHI.items())
    g = numpyro.sample("g", dist.Bernoulli(logits=loud))
    step = lambda z, y: (numpyro.sample("z", dist.Bernoulli(logits=start * (1.0 - g) + moves * z + reads * y)), None)
    scan(step, 0, y)


def densities(theta, phi, g, previous, z, t, cannot):
    """Log p(z_t, y_t | z_{t-1}, g) and log q(z_t | z_{t-1}, g, y)."""
    log_p = log_bernoulli(theta["stays"] * (2.0 * previous - 1.0), z)
    log_p = log_p + log_bernoulli(theta["shows"] * (1.0 + g) * (2.0 * z - 1.0), SEEN[t])
    log_p = jnp.where((z == cannot) & (t == 0), -jnp.inf, log_p)
    return log_p, log_bernoulli(phi["start"] * (1.0 - g) + phi["moves"] * previous + phi["reads"] * SEEN[t], z)


@partial(jax.jit, static_argnames="cannot")
def first_step(theta, phi, g, z, cannot):
    """Weights after it, and log densities of what the guide draws before and at it."""
    log_q_before = log_bernoulli(phi["loud"], g)
    log_p, log_q = densities(theta, phi, g, jnp.zeros(2, int), z, 0, cannot)
    log_p = jnp.log(0.5) + log_p
    return log_p, jnp.exp(log_p - log_q_before - log_q), log_q_before, log_q


@partial(jax.jit, static_argnames="cannot")
def by_hand(theta, phi, g, z, ancestors, resamples, cannot):
    """Losses of one outcome, ``z[t, k]``, whose gradients are those of the formulas, and its evidence."""
    first_log_p, first, log_q_before, log_q = first_step(theta, phi, g, z[0], cannot)
    log_p, last_log_q = densities(theta, phi, g[ancestors], z[0][ancestors], z[1], 1, cannot)
    last = jnp.where(resamples, first.sum() / 2, first) * jnp.exp(log_p - last_log_q)
    w = [jax.lax.stop_gradient(weight / jnp.maximum(weight.sum(), 1e-30)) for weight in (first, last)]
    path = first_log_p[ancestors] + log_p  # of what is left at the end
    of_g = jnp.stack([(w[1] * (ancestors == k)).sum() for k in range(2)])  # all that comes of each
    theta_loss = -jnp.where(w[1] > 0, w[1] * jnp.where(w[1] > 0, path, 0.0), 0.0).sum()
    phi_loss = -(of_g * log_q_before).sum() - (w[0] * log_q).sum() - (w[1] * last_log_q).sum()
    return theta_loss, phi_loss, last.sum() / 2


def outcomes(theta, phi, below, cannot):
    """Draws, ancestors and probability of all that can happen; the uniform number of ancestors is integrated over."""
    for drawn in product((0, 1), repeat=6):
        g, *z = np.array(drawn).reshape(3, 2)
        _, w, log_q_before, log_q = (np.asarray(x, np.float64) for x in first_step(theta, phi, g, z[0], cannot))
        resamples = w.sum() > 0 and w.sum() ** 2 / (w**2).sum() < 2 * below
        # The positions are u / 2 and (1 + u) / 2: the second may have ancestor 0 as well, or the first ancestor 1.
        share = w[0] / w.sum() if resamples else 0.5
        if share >= 0.5:
            cells = {(0, 0): 2 * share - 1, (0, 1): 2 - 2 * share}
        else:
            cells = {(0, 1): 2 * share, (1, 1): 1 - 2 * share}
        for ancestors, length in cells.items():
            own = list(ancestors)
            _, last_log_q = densities(theta, phi, g[own], z[0][own], z[1], 1, cannot)
            probability = length * np.exp((log_q_before + log_q + np.asarray(last_log_q, np.float64)).sum())
            if probability > 0:
                yield drawn, ancestors, resamples, probability


def exact_evidence(theta, cannot):
    g, first, last = jnp.array(list(product((0, 1), repeat=3))).T
    log_p = densities(theta, PHI, g, jnp.zeros(8, int), first, 0, cannot)[0]
    return np.exp(np.asarray(log_p + densities(theta, PHI, g, first, last, 1, cannot)[0], np.float64)).sum() / 2


@pytest.mark.slow
@pytest.mark.usefixtures("allow_key_reuse")  # one key for losses and for what was drawn
@pytest.mark.parametrize(
    ("below", "cannot"),
    [
        pytest.param(0.9, None, id="resampled now and then"),
        pytest.param(1.0, None, id="resampled always"),
        pytest.param(0.5, None, id="resampled never"),
        pytest.param(0.9, 1, id="dead particles"),
    ],
)
def test_expected_evidence_and_gradients_equal_enumeration(below, cannot):
    """Whole runs of many seeds, of which each possible outcome counts once, by its exact probability."""
    model, guide = partial(chain_model, cannot=cannot), partial(chain_guide, cannot=cannot)

    def own_before(rng_key):
        draw = lambda programs, index: ORDINARY.draw(programs, index).latents["g"]
        return run(draw, model, guide, THETA, PHI, 2, SEEN, seed=rng_key)

    def of(rng_key):
        def losses(theta, phi):
            scored = resampled(below, model, guide, theta, phi, 2, SEEN, seed=rng_key)
            return theta_loss(scored), score.plain_phi_loss(scored), score.phi_loss(scored)

        of_bound, plain, of_phi = jax.jacrev(losses, argnums=(0, 1))(THETA, PHI)
        found = run(Weighed(below), model, guide, THETA, PHI, 2, SEEN, seed=rng_key)
        recorded = found.recorded
        evidence = jnp.exp(weights.bound(found.log_weight))
        drawn = jnp.concatenate([own_before(rng_key), recorded.latents["z"].T.ravel()])
        return drawn, recorded.ancestor[:, 0], evidence, of_bound[0], plain[1], of_phi[1]

    ran = jax.tree.map(np.asarray, jax.jit(jax.vmap(of))(jax.random.split(jax.random.key(0), 40_000)))
    seen = {(tuple(drawn), tuple(a)): i for i, (drawn, a) in enumerate(zip(*ran[:2], strict=True))}
    possible = list(outcomes(THETA, PHI, below, cannot))
    np.testing.assert_allclose(sum(probability for *_, probability in possible), 1.0, rtol=1e-6)
    assert {(drawn, ancestors) for drawn, ancestors, *_ in possible} == seen.keys()
    slopes = jax.jit(
        lambda *outcome: (
            by_hand(THETA, PHI, *outcome, cannot)[2],
            jax.grad(lambda theta: by_hand(theta, PHI, *outcome, cannot)[0])(THETA),
            jax.grad(lambda phi: by_hand(THETA, phi, *outcome, cannot)[1])(PHI),
        )
    )
    found, expected = [], []
    for drawn, ancestors, resamples, probability in possible:
        run_of = seen[drawn, ancestors]
        found.append(jax.tree.map(lambda leaf, i=run_of, p=probability: p * np.float64(leaf[i]), ran[2:]))
        g, *z = np.array(drawn).reshape(3, 2)
        of_outcome = slopes(g, np.stack(z), np.array(ancestors), resamples)
        expected.append(jax.tree.map(lambda leaf, p=probability: p * np.float64(leaf), of_outcome))
    sum_of = lambda trees: jax.tree.map(lambda *leaves: sum(leaves), *trees)
    (evidence, of_theta, plain, of_phi), (by_formula, slope_theta, slope_phi) = sum_of(found), sum_of(expected)
    np.testing.assert_allclose([evidence, by_formula], exact_evidence(THETA, cannot), rtol=1e-6)
    for own, exact in ((of_theta, slope_theta), (plain, slope_phi), (of_phi, slope_phi)):
        for name in own:  # that of the control variate is zero, or the last two would differ
            np.testing.assert_allclose(own[name], exact[name], atol=1e-6)


# ---- a switch with a Gaussian state: a Kalman filter for each sequence of switches

X = np.array([0.3, 1.9, -1.2, 0.4])
SWITCHES = np.array([[0.7, 0.3], [0.4, 0.6]])
DECAYS, NOISES, ERROR = np.array([0.95, -0.5]), np.array([0.3, 1.2]), 0.4


def switching_model(x):
    def step(carry, x):
        s, z = carry
        s = numpyro.sample("s", dist.Bernoulli(jnp.asarray(SWITCHES)[s, 1]))
        z = numpyro.sample("z", dist.Normal(jnp.asarray(DECAYS)[s] * z, jnp.asarray(NOISES)[s]))
        numpyro.sample("x", dist.Normal(z, ERROR), obs=x)
        return (s, z), None

    scan(step, (0, jnp.array(0.5)), x)


def switching_guide(x):
    def step(carry, x):
        s = numpyro.sample("s", dist.Bernoulli(0.5))
        h = 0.5 * carry  # a state of its own, which is not a latent
        z = numpyro.sample("z", dist.Normal(0.7 * x + h, 0.5 + 0.3 * s))
        return jnp.tanh(h + 0.1 * z), None

    scan(step, 0.0, x)


def filtered(x, decays, noises, error, mean=0.5, variance=0.0):
    """Log evidence, and means and variances of the state given the data so far, by a Kalman filter."""
    log_evidence, means, variances = 0.0, [], []
    for seen, decay, noise in zip(x, decays, noises, strict=True):
        mean, variance = decay * mean, decay**2 * variance + noise**2
        spread = variance + error**2
        log_evidence += -0.5 * ((seen - mean) ** 2 / spread + np.log(2 * np.pi * spread))
        gain = variance / spread
        mean, variance = mean + gain * (seen - mean), (1 - gain) * variance
        means.append(mean)
        variances.append(variance)
    return log_evidence, np.array(means), np.array(variances)


def exact_switching():
    """Evidence, and posterior probability of the last switch and mean of the last state."""
    evidence, last_switch, last_state = 0.0, 0.0, 0.0
    for switches in product((0, 1), repeat=len(X)):
        prior = np.prod([SWITCHES[a, b] for a, b in zip((0, *switches), switches, strict=False)])
        log_evidence, means, _ = filtered(X, DECAYS[list(switches)], NOISES[list(switches)], ERROR)
        joint = prior * np.exp(log_evidence)
        evidence, last_switch = evidence + joint, last_switch + joint * switches[-1]
        last_state += joint * means[-1]
    return np.array([evidence, last_switch, last_state])


@pytest.mark.slow
@pytest.mark.parametrize("below", [0.5, 1.0])
def test_a_switching_model_has_the_evidence_of_kalman_filters_for_all_switches(below):
    """Within 5 standard errors, and so are the weighted sums of the last switch and the last state."""

    def of(rng_key):
        weighed = run(Weighed(below), switching_model, switching_guide, {}, {}, 6, jnp.asarray(X), seed=rng_key)
        w = jnp.exp(weighed.log_weight) / 6
        return w.sum(), (w * weighed.latents["s"][:, -1]).sum(), (w * weighed.latents["z"][:, -1]).sum()

    found = np.stack(jax.jit(jax.vmap(of))(jax.random.split(jax.random.key(2), 20_000)))
    errors, exact = found.std(axis=1) / np.sqrt(found.shape[1]), exact_switching()
    assert (np.abs(found.mean(axis=1) - exact) < 5 * errors).all(), (found.mean(axis=1), exact, errors)
    assert (errors < 0.05 * np.abs(exact)).all()


# ---- a long series with the prior as guide, by the functions that users call

NUM_STEPS, DECAY = 50, 0.9


def series_model(x):
    def step(z, x):
        z = numpyro.sample("z", dist.Normal(DECAY * z, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
        return z, None

    scan(step, 0.0, x)


def prior(x):
    scan(lambda z, x: (numpyro.sample("z", dist.Normal(DECAY * z, 1.0)), None), 0.0, x)


@pytest.mark.slow
@pytest.mark.usefixtures("allow_key_reuse")  # the same keys with resampling and without
def test_a_long_series_has_the_evidence_of_the_kalman_filter_and_the_means_of_the_smoother():
    """A gap of 239 nats without resampling and 0.8 with it, where weights of whole paths have an ESS of one."""
    rng = np.random.default_rng(0)
    noise, z, x = rng.normal(size=(NUM_STEPS, 2)), 0.0, []
    for of_state, of_datum in noise:
        z = DECAY * z + of_state
        x.append(z + 0.5 * of_datum)
    x = np.array(x, np.float32)
    powers = np.tril(DECAY ** np.maximum(np.subtract.outer(np.arange(NUM_STEPS), np.arange(NUM_STEPS)), 0))
    identity = np.eye(NUM_STEPS)
    log_evidence, mean, _ = linear(powers @ powers.T, identity, 0.25 * identity, x)
    by_kalman, filtered_means, _ = filtered(x, [DECAY] * NUM_STEPS, np.ones(NUM_STEPS), 0.5, mean=0.0)
    np.testing.assert_allclose(by_kalman, log_evidence, rtol=1e-6)
    np.testing.assert_allclose(filtered_means[-1], mean[-1], rtol=1e-6)

    def of(rng_key, **how):
        weighed = rws_jax.importance_sample(rng_key, {}, series_model, prior, x, num_particles=100, **how)
        return weighed.log_evidence().value, weighed.expectation().value["z"]

    keys = jax.random.split(jax.random.key(0), 20)
    joint, _ = jax.vmap(of)(keys)
    log_evidences, means = jax.vmap(partial(of, resample="systematic"))(keys)
    gaps = log_evidence - np.asarray(log_evidences, np.float64)
    # Of a log of variance s^2 the gap is s^2 / 2 if it is Gaussian: of both, 5 standard errors of their difference.
    variance = gaps.var(ddof=1)
    assert abs(gaps.mean() - variance / 2) < 5 * np.sqrt(variance / 20 + variance**2 / 38)
    assert gaps.mean() < 2.4  # measured as 0.83, with a standard error of 0.31
    assert gaps.mean() < (log_evidence - joint).mean() / 5
    means = np.asarray(means, np.float64)
    errors = means.std(axis=0, ddof=1) / np.sqrt(20)
    assert (np.abs(means.mean(axis=0) - mean) < 5 * errors).all()
    assert (errors < 0.2).all()

    for number, rng_key in enumerate(keys[:2]):  # batch number 0 uses a key folded in
        how = {"num_particles": 100, "resample": "systematic", "progress_bar": False}
        evaluated = rws_jax.evaluate(rng_key, {}, series_model, prior, [(x,)], **how)
        own_key = jax.random.fold_in(rng_key, 0)
        np.testing.assert_allclose(evaluated.log_evidence, of(own_key, resample="systematic")[0], rtol=1e-5)
        assert np.isnan(evaluated.standard_error_over_particles), number
