"""Values and gradients of the three losses against enumeration, closed forms and densities written out by hand."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from numpyro.handlers import seed

import rws_jax
from rws_jax import estimators
from rws_jax.options import WakeOptions
from rws_jax.particles import Dreams, Particles, draw_particles, dream, score_dreams, score_particles
from rws_jax.programs import Call, Draws
from tests import programs

LOSSES = [rws_jax.wake_theta_loss, rws_jax.wake_phi_loss, rws_jax.sleep_phi_loss]
by_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
by_program = pytest.mark.parametrize("name", programs.BY_HAND)
allow_key_reuse = pytest.mark.usefixtures("allow_key_reuse")


def seeded(model, guide, seed_value=0):
    model_key, guide_key = jax.random.split(jax.random.key(seed_value))
    return seed(model, model_key), seed(guide, guide_key)


def calls(model, guide, theta, phi, *args, seed_value=0):
    """The same programs with their parameters and arguments."""
    model, guide = seeded(model, guide, seed_value)
    return Call(model, "model", theta, args, {}), Call(guide, "guide", phi, args, {})


def drawn(model, guide, phi, *args, num_particles):
    """Latents that the losses draw from these programs."""
    return draw_particles(calls(model, guide, {}, phi, *args)[1], jnp.arange(num_particles)).latents


def wake(model, guide, *args, num_particles):
    """Particles of programs without parameters."""
    return estimators.wake(*calls(model, guide, {}, {}, *args), None, WakeOptions(num_particles=num_particles))


def value_and_grads(loss):
    """Value and gradients with respect to theta and phi, compiled."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def theta_loss_by_hand(log_p, log_q):
    log_w = log_p - jax.lax.stop_gradient(log_q)
    return -jnp.sum(logsumexp(log_w, axis=0) - jnp.log(len(log_w)))


def phi_loss_by_hand(log_p, log_q):
    w = jax.lax.stop_gradient(jax.nn.softmax(log_p - log_q, axis=0))
    return -jnp.sum(w * log_q)


# Expectations at finite K, by enumeration of all particle tuples


def all_particle_tuples(num_particles, num_units):
    """Every assignment of states to particles and units: state indices, shape (tuples, particles, units)."""
    states = itertools.product(range(4), repeat=num_particles * num_units)
    return jnp.array(list(states)).reshape(-1, num_particles, num_units)


@pytest.mark.parametrize("kind", ["theta", "phi"])
def test_expected_wake_gradients_equal_enumeration(kind):
    """The exact expectation over all 4^(2*2) particle tuples, so the bias of finite K is part of the comparison."""
    x = programs.BINARY_DATA[:2]
    tuples = all_particle_tuples(num_particles=2, num_units=2)
    hand_loss = {"theta": theta_loss_by_hand, "phi": phi_loss_by_hand}[kind]
    package_loss = {"theta": estimators.theta_loss, "phi": estimators.phi_loss}[kind]
    argnum = {"theta": 0, "phi": 1}[kind]

    def package(theta, phi, states):
        z1, z2 = programs.BINARY_STATES[states, 0], programs.BINARY_STATES[states, 1]
        draws = Draws({"z1": z1, "z2": z2}, {})
        return package_loss(
            score_particles(*calls(programs.binary_model, programs.binary_guide, theta, phi, x), draws, jnp.arange(2))
        )

    def by_hand(theta, phi, states):
        log_p = jnp.stack([programs.binary_log_p(theta, x[n])[states[:, n]] for n in range(2)], axis=1)
        log_q = jnp.stack([programs.binary_log_q(phi, x[n])[states[:, n]] for n in range(2)], axis=1)
        return hand_loss(log_p, log_q)

    params = programs.BINARY_THETA, programs.BINARY_PHI
    log_q = jnp.stack([programs.binary_log_q(params[1], x[n]) for n in range(2)])
    probs = jnp.exp(sum(log_q[n][tuples[:, k, n]] for k in range(2) for n in range(2)))
    assert jnp.allclose(probs.sum(), 1.0, atol=1e-5)

    def expected(loss):
        values, grads = jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=argnum), (None, None, 0)))(*params, tuples)
        return jax.tree.map(lambda leaf: jnp.tensordot(probs, leaf, 1), (values, grads))

    chex.assert_trees_all_close(expected(package), expected(by_hand), atol=2e-6)


def test_expected_sleep_gradient_equals_enumeration():
    """Dreams are (z1, z2, x); their exact expectation is a sum over eight states."""
    dreams = jnp.array(list(itertools.product([0, 1], repeat=3)))

    def package(phi, dream):
        draws = Draws({"z1": dream[None, :1], "z2": dream[None, 1:2]}, {})
        data = {"x": dream[None, 2:].astype(float)}
        _, guide = calls(programs.binary_model, programs.binary_guide, {}, phi, jnp.zeros(1))
        return estimators.dream_loss(score_dreams(guide, (draws, data), jnp.arange(1), None))

    def by_hand(phi, dream):
        return -programs.binary_log_q(phi, dream[2])[2 * dream[0] + dream[1]]

    log_p = jnp.stack([programs.binary_log_p(programs.BINARY_THETA, x)[2 * z1 + z2] for z1, z2, x in dreams])
    assert jnp.allclose(jnp.exp(log_p).sum(), 1.0, atol=1e-6)

    def expected(loss):
        values_and_grads = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))(programs.BINARY_PHI, dreams)
        return jax.tree.map(lambda leaf: jnp.tensordot(jnp.exp(log_p), leaf, 1), values_and_grads)

    chex.assert_trees_all_close(expected(package), expected(by_hand), atol=1e-6)


def test_drawn_particles_follow_the_guide_and_dreams_the_model():
    """Frequencies within 5 standard errors; with 12 + 8 comparisons a false alarm has probability 1e-5."""
    x, num = programs.BINARY_DATA, 20_000
    model, guide = calls(programs.binary_model, programs.binary_guide, programs.BINARY_THETA, programs.BINARY_PHI, x)
    z = draw_particles(guide, jnp.arange(num)).latents
    for n in range(3):
        q = jnp.exp(programs.binary_log_q(programs.BINARY_PHI, x[n]))
        frequency = jnp.bincount(2 * z["z1"][:, n] + z["z2"][:, n], length=4) / num
        assert jnp.all(jnp.abs(frequency - q) < 5 * jnp.sqrt(q * (1 - q) / num))
    draws, data = dream(model, jnp.arange(num), ())
    state = 2 * draws.latents["z1"] + draws.latents["z2"]
    for value in (0.0, 1.0):
        p = jnp.exp(programs.binary_log_p(programs.BINARY_THETA, value))
        frequency = jnp.bincount(jnp.where(data["x"] == value, state, 4).ravel(), length=5)[:4] / state.size
        assert jnp.all(jnp.abs(frequency - p) < 5 * jnp.sqrt(p * (1 - p) / state.size))


def test_exact_guide_gives_the_evidence_with_any_number_of_particles():
    x = programs.BINARY_DATA
    posterior = jnp.stack([jax.nn.softmax(programs.binary_log_p(programs.BINARY_THETA, v)) for v in (0.0, 1.0)])
    q1 = posterior[:, 2] + posterior[:, 3]
    q2 = jnp.stack([posterior[:, 1] / (1 - q1), posterior[:, 3] / q1], axis=1)
    logit = lambda p: jnp.log(p) - jnp.log1p(-p)
    phi = {"a": logit(q1), "b": logit(q2)}
    evidence = sum(logsumexp(programs.binary_log_p(programs.BINARY_THETA, v)) for v in x)
    model, guide = seeded(programs.binary_model, programs.binary_guide)
    loss = jax.jit(lambda phi: rws_jax.wake_theta_loss(programs.BINARY_THETA, phi, model, guide, x, num_particles=2))
    assert jnp.allclose(loss(phi), -evidence, rtol=1e-6)


# The same particles, densities written out by hand


@allow_key_reuse
@by_program
@pytest.mark.parametrize("kind", ["theta", "phi"])
def test_wake_equals_hand_computation_from_detached_values(name, kind):
    """Fails if a gradient flows through a draw: from site to site, out of scan or cond, or from a cached inverse."""
    model, guide, x, log_p, log_q = programs.BY_HAND[name]
    params = programs.BY_HAND_THETA, programs.BY_HAND_PHI
    z = drawn(model, guide, params[1], x, num_particles=7)
    package = {"theta": rws_jax.wake_theta_loss, "phi": rws_jax.wake_phi_loss}[kind]
    hand = {"theta": theta_loss_by_hand, "phi": phi_loss_by_hand}[kind]
    found = value_and_grads(lambda *p: package(*p, *seeded(model, guide), x, num_particles=7))(*params)
    expected = value_and_grads(lambda t, f: hand(log_p(t, z, x), log_q(f, z, x)))(*params)
    chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=1e-6)
    assert jnp.abs(found[1][0 if kind == "theta" else 1]["mu" if kind == "theta" else "a"]) > 1e-3


@allow_key_reuse
@by_program
def test_sleep_equals_hand_computation_from_dreams(name):
    """Dreams of scan and cond are those of the model, and are scored as densities written out by hand do."""
    model, guide, x, _, log_q = programs.BY_HAND[name]
    draws, data = dream(calls(model, guide, programs.BY_HAND_THETA, {}, x)[0], jnp.arange(7), ())

    def hand(phi):
        return -jnp.mean(
            jnp.stack(
                [log_q(phi, {n: v[s][None] for n, v in draws.latents.items()}, data["x"][s])[0] for s in range(7)]
            )
        )

    loss = lambda phi: rws_jax.sleep_phi_loss(programs.BY_HAND_THETA, phi, *seeded(model, guide), x, num_particles=7)
    found, expected = (jax.jit(jax.value_and_grad(f))(programs.BY_HAND_PHI) for f in (loss, hand))
    chex.assert_trees_all_close(found, expected, rtol=2e-5)
    assert not jnp.any(data["x"][0] == x)


def test_hand_numbers_on_three_particles():
    """Weights 1/2, 1/3, 1/6 by choice: w = 3, 2, 1 with q = 1/4 each."""
    log_p = jnp.log(jnp.array([3.0, 2.0, 1.0])) + jnp.log(0.25)
    log_q = jnp.log(jnp.full(3, 0.25))
    scored = Particles(log_p, log_q, 1.0)
    assert jnp.allclose(estimators.theta_loss(scored), -jnp.log(2.0))  # mean weight 2
    grad = jax.grad(lambda log_q: estimators.phi_loss(Particles(log_p, log_q, 1.0)))(log_q)
    assert jnp.allclose(grad, -jnp.array([3.0, 2.0, 1.0]) / 6.0)
    assert jnp.allclose(estimators.phi_loss(scored), jnp.log(4.0))
    assert jnp.allclose(estimators.dream_loss(Dreams(log_q, 2.0)), 2.0 * jnp.log(4.0))


# Ownership


@by_loss
@allow_key_reuse
@by_program
def test_each_loss_trains_one_program_and_leaves_the_other_at_exactly_zero(loss, name):
    model, guide, x, _, _ = programs.BY_HAND[name]
    value = lambda *params: loss(*params, *seeded(model, guide), x, num_particles=5)
    _, grads = value_and_grads(value)(programs.BY_HAND_THETA, programs.BY_HAND_PHI)
    trained, frozen = grads if loss is rws_jax.wake_theta_loss else grads[::-1]
    chex.assert_trees_all_equal(frozen, jax.tree.map(jnp.zeros_like, frozen))
    assert all(jnp.abs(leaf) > 0 for leaf in jax.tree.leaves(trained))


# Units and scales


def normal_model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def normal_guide(x):
    m = numpyro.param("m", 0.0)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(m, 1.0))


def test_wake_phi_gradient_per_datum_does_not_depend_on_the_number_of_data():
    """N equal data x = 1: the exact gradient of each is -E[z | x] = -0.8. Joint weights would let it decay, see below.

    Within 5 standard errors of the estimate from N = 1; the bias of K = 100 is common to all N.
    """

    def grad(key, n):
        model, guide = seed(normal_model, key), seed(normal_guide, jax.random.fold_in(key, 1))
        loss = lambda m: rws_jax.wake_phi_loss({}, {"m": m}, model, guide, jnp.ones(n), num_particles=100)
        return jax.grad(loss)(jnp.array(0.0)) / n

    def estimate(n):
        keys = jax.random.split(jax.random.key(n), 4000 // n)
        grads = jax.jit(jax.vmap(lambda key: grad(key, n)))(keys)
        return grads.mean(), grads.std() / jnp.sqrt(len(keys))

    estimates = {n: estimate(n) for n in (1, 10, 100, 1000)}
    reference, error = estimates[1]
    assert jnp.abs(reference + 0.8) < 5 * error + 0.01
    for mean, standard_error in estimates.values():
        assert jnp.abs(mean - reference) < 5 * jnp.hypot(error, jnp.maximum(standard_error, error))


@pytest.mark.parametrize(("n", "decayed"), [(1, -0.80), (10, -0.59), (100, -0.20)])
def test_weights_joint_over_the_data_would_decay(n, decayed):
    """The same particles, weighted as one unit: the README's figures. Five standard errors are at most 0.02."""

    def grad(key):
        def loss(m):
            args = (jnp.ones(n),), {}
            model = Call(seed(normal_model, key), "model", {}, *args)
            guide = Call(seed(normal_guide, jax.random.fold_in(key, 1)), "guide", {"m": m}, *args)
            scored = estimators.wake(model, guide, None, WakeOptions(num_particles=100))
            return estimators.phi_loss(Particles(scored.log_p.sum(axis=1), scored.log_q.sum(axis=1), 1.0))

        return jax.grad(loss)(jnp.array(0.0)) / n

    grads = jax.jit(jax.vmap(grad))(jax.random.split(jax.random.key(n), 2000))
    assert jnp.abs(grads.mean() - decayed) < 0.02


@allow_key_reuse
@by_loss
def test_subsampling_scales_the_loss_and_leaves_the_weights(loss):
    def model(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(numpyro.param("mu", 0.0), 1.0))
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))

    x = jnp.array([0.3, -0.2, 1.0])
    params = {"mu": jnp.array(0.1)}, {"m": jnp.array(0.2)}
    value = lambda size: value_and_grads(lambda *p: loss(*p, *seeded(model, guide), x, num_particles=4, size=size))(
        *params
    )
    # Equal keys give equal draws: plate messages of a full plate take no key, so compare two subsampled sizes.
    chex.assert_trees_all_close(jax.tree.map(lambda v: 4 * v, value(6)), value(24), rtol=1e-5)


@allow_key_reuse
def test_minibatch_drawn_in_the_model_is_shared_by_all_particles_and_by_both_programs():
    data = jnp.arange(50.0)

    def model(data):
        with numpyro.plate("data", 50, subsample_size=5) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 100.0))
            numpyro.deterministic("index", index)
            numpyro.sample("x", dist.Normal(z, 0.1), obs=data[index])

    def guide(data):
        with numpyro.plate("data", 50, subsample_size=5) as index:
            numpyro.sample("z", dist.Normal(data[index] + numpyro.param("m", 0.0), 0.1))

    phi = {"m": jnp.array(0.0)}
    draw = lambda data: draw_particles(calls(model, guide, {}, phi, data)[1], jnp.arange(8))
    draws = jax.jit(draw)(data)
    assert draws.plates["data"].shape == (5,)
    assert jnp.all(jnp.abs(draws.latents["z"] - data[draws.plates["data"]][None]) < 1.0)
    # If the model looked at another minibatch, z would be tens of standard deviations from its x.
    loss = lambda data: rws_jax.wake_theta_loss({}, phi, *seeded(model, guide), data, num_particles=8)
    assert 4.0 < jax.jit(loss)(data) / 50 < 7.0  # -log N(x; 0, 100) is about 5.5 nats


def test_global_latent_makes_one_unit_and_nested_plates_make_many():
    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(mu, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    def nested_model(x):
        with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((3, 4, 2)), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def nested_guide(x):
        with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1):
            numpyro.sample("z", dist.Normal(jnp.zeros((3, 4, 2)), 1.0).to_event(1))

    scored = wake(model, guide, jnp.ones(5), num_particles=6)
    assert scored.log_p.shape == scored.log_q.shape == (6,)
    scored = wake(nested_model, nested_guide, jnp.ones((3, 4, 2)), num_particles=6)
    assert scored.log_p.shape == scored.log_q.shape == (6, 3, 4)
    z = drawn(nested_model, nested_guide, {}, jnp.ones((3, 4, 2)), num_particles=6)["z"]
    by_hand = (norm.logpdf(z) + norm.logpdf(1.0, z)).sum(axis=-1)
    assert jnp.allclose(scored.log_p, by_hand, rtol=1e-5)


def test_mask_and_scale_handlers_count_as_written():
    mask = jnp.array([True, False, True])

    def model(x):
        with numpyro.plate("data", 3), numpyro.handlers.scale(scale=2.0):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.handlers.mask(mask=mask):
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 3), numpyro.handlers.mask(mask=mask):
            numpyro.sample("z", dist.Normal(0.5, 1.0))

    x = jnp.array([1.0, jnp.nan, -1.0])
    z = drawn(model, guide, {}, x, num_particles=5)["z"]
    scored = wake(model, guide, x, num_particles=5)
    likelihood = jnp.where(mask[None], norm.logpdf(jnp.nan_to_num(x)[None], z), 0.0)
    assert jnp.allclose(scored.log_p, 2.0 * (norm.logpdf(z) + likelihood), rtol=1e-5)
    assert jnp.allclose(scored.log_q, jnp.where(mask[None], norm.logpdf(z, 0.5), 0.0), rtol=1e-5)


# JAX transformations


@by_loss
def test_grad_jit_vmap_and_scan_give_the_numbers_of_eager_mode(loss):
    data_sets = jnp.array([0.5, -1.0])
    keys = jax.random.split(jax.random.key(0), 2)

    def value(phi, key, x):
        model, guide = seed(programs.gaussian_model, key), seed(programs.gaussian_guide, jax.random.fold_in(key, 1))
        return loss(programs.BY_HAND_THETA, phi, model, guide, x, num_particles=3)

    phi = programs.BY_HAND_PHI
    value_and_grad = jax.value_and_grad(value)
    eager = [value_and_grad(phi, k, x) for k, x in zip(keys, data_sets, strict=True)]
    eager = jax.tree.map(lambda *leaves: jnp.stack(leaves), *eager)
    vmapped = jax.vmap(value_and_grad, (None, 0, 0))(phi, jax.random.clone(keys), data_sets)
    body = lambda carry, inputs: (carry, jax.jit(value_and_grad)(phi, *inputs))
    _, scanned = jax.lax.scan(body, None, (jax.random.clone(keys), data_sets))
    chex.assert_trees_all_close(eager, vmapped, rtol=1e-5)
    chex.assert_trees_all_close(eager, scanned, rtol=1e-5)


def test_a_particle_depends_on_the_seed_and_its_index_alone():
    model, guide, x, _, _ = programs.BY_HAND["scan"]
    draw = lambda indices: draw_particles(calls(model, guide, {}, programs.BY_HAND_PHI, x)[1], indices).latents["z"]
    ten = draw(jnp.arange(10))
    chex.assert_trees_all_equal(draw(jnp.arange(4)), ten[:4])
    chex.assert_trees_all_equal(draw(jnp.array([7, 3])), ten[jnp.array([7, 3])])
    assert len({float(z[0]) for z in ten}) == 10


@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "legacy"])
def test_typed_and_legacy_keys_give_the_same_loss(key):
    model, guide = seed(programs.binary_model, key(1)), seed(programs.binary_guide, key(2))
    loss = rws_jax.wake_theta_loss(programs.BINARY_THETA, programs.BINARY_PHI, model, guide, programs.BINARY_DATA)
    reference = seed(programs.binary_model, 1), seed(programs.binary_guide, 2)
    chex.assert_trees_all_equal(
        loss, rws_jax.wake_theta_loss(programs.BINARY_THETA, programs.BINARY_PHI, *reference, programs.BINARY_DATA)
    )
