"""The losses on the same draws as formulas written out by hand; units, scales, and JAX transformations."""

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpyro.handlers import seed

import rws_jax
from rws_jax.estimators import dreg, score, sleep, vimco
from rws_jax.estimators.bound import theta_loss
from rws_jax.estimators.scored import ScoredDreams
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.vectorized import Vectorized
from rws_jax.programs.density import Units
from tests import models, oracles
from tests.estimates import DELTA, ESTIMATORS, values_and_gradients
from tests.oracles import draw, dream, programs_of, scored, seeded, value_and_grads, wake

LOSSES = [rws_jax.wake_theta_loss, rws_jax.wake_phi_loss, rws_jax.sleep_phi_loss]
by_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
IN_FLOORS = "one latent", "scan", "cond", "masked"  # what rests on NumPyro's own handlers
FAST = "two latents", "subsampled", "masked", "cond in scan"  # leaks, scales, masks and control flow
marks_of = lambda name: [pytest.mark.floors] * (name in IN_FLOORS) + [pytest.mark.slow] * (name not in FAST)
by_program = pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in models.BY_HAND])
allow_key_reuse = pytest.mark.usefixtures("allow_key_reuse")
allow_as_numpyro_does = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")


def drawn(model, guide, phi, *args, num_particles):
    """Latents that the losses draw from these programs."""
    return draw(programs_of(model, guide, {}, phi, *args), num_particles).latents


# The same draws, densities written out by hand

# Estimators as users call them
LOSSES_OF = {
    "theta": (rws_jax.wake_theta_loss, {}),
    "theta, defensive": (rws_jax.wake_theta_loss, {"defensive": DELTA}),
    "phi, plain": (rws_jax.wake_phi_loss, {"control_variate": False}),
    "phi": (rws_jax.wake_phi_loss, {}),
    "phi, plain, defensive": (rws_jax.wake_phi_loss, {"defensive": DELTA, "control_variate": False}),
    "phi, defensive": (rws_jax.wake_phi_loss, {"defensive": DELTA}),
    "phi, vimco": (rws_jax.wake_phi_loss, {"gradient": "vimco"}),
    "phi, vimco, defensive": (rws_jax.wake_phi_loss, {"gradient": "vimco", "defensive": DELTA}),
    "phi, dreg": (rws_jax.wake_phi_loss, {"gradient": "dreg"}),
    "sleep": (rws_jax.sleep_phi_loss, {}),
}
WAKE = [name for name in LOSSES_OF if name not in ("phi, dreg", "sleep")]


@allow_as_numpyro_does
def test_losses_are_the_estimators():
    model, guide, x = models.BY_HAND["two latents"][:3]
    params = models.BY_HAND_THETA, models.BY_HAND_PHI

    def value_and_grads(loss, options):
        return jax.value_and_grad(
            lambda *p: loss(*p, *seeded(model, guide), x, num_particles=4, **options), argnums=(0, 1)
        )(*params)

    @jax.jit
    def all_of():
        estimates = values_and_gradients(Vectorized(), programs_of(model, guide, *params, x), 4, ESTIMATORS)
        return {name: value_and_grads(*of_user) for name, of_user in LOSSES_OF.items()}, estimates

    found, expected = all_of()
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@allow_as_numpyro_does
@by_program
def test_wake_equals_hand_computation_from_detached_values(name):
    """Fails if a gradient flows through a draw: from site to site, out of scan or cond, or from a cached inverse.

    The gradient of the other program's parameters must be exactly zero.
    """
    by_hand = models.BY_HAND[name]
    model, guide, x, num = by_hand.model, by_hand.guide, by_hand.x, 7
    params = models.BY_HAND_THETA, models.BY_HAND_PHI
    programs_ = programs_of(model, guide, *params, x)

    def hand(theta, phi, kind, draws):
        delta = DELTA if "defensive" in kind else 0.0
        z = draws[delta]
        log_p, log_q = by_hand.log_p(theta, z, x), by_hand.log_q(phi, z, x)
        log_r = oracles.mixture(log_q, by_hand.log_prior(theta, z, x), delta) if delta else None
        if "theta" in kind:
            return by_hand.scale * oracles.theta_loss(log_p, log_q, log_r)
        if "vimco" in kind:
            return by_hand.scale * oracles.vimco_loss(log_p, log_q, log_r)
        return by_hand.scale * oracles.phi_loss(log_p, log_q, log_r, "plain" not in kind)

    @jax.jit
    def all_of():
        draws = {delta: draw(programs_, num, delta).latents for delta in (0.0, DELTA)}
        found = values_and_gradients(Vectorized(), programs_, num, [WakeParticle(), WakeParticle(DELTA)])
        of_hand = lambda kind: jax.value_and_grad(lambda *p: hand(*p, kind, draws), argnums=(0, 1))(*params)
        return draws, found, {kind: of_hand(kind) for kind in WAKE}

    draws, found, expected = all_of()
    assert any(jnp.any(value != draws[DELTA][site]) for site, value in draws[0.0].items())
    chex.assert_trees_all_close(found, expected, rtol=5e-5, atol=2e-6)
    for kind, (_, grads) in found.items():
        trained, frozen = grads if kind.startswith("theta") else grads[::-1]
        chex.assert_trees_all_equal(frozen, jax.tree.map(jnp.zeros_like, frozen))
        assert all(jnp.abs(leaf) > 1e-4 for leaf in jax.tree.leaves(trained))


@allow_as_numpyro_does
@by_program
def test_sleep_equals_hand_computation_from_dreams(name):
    """Dreams of scan and cond are those of the model, and are scored as densities written out by hand do."""
    by_hand = models.BY_HAND[name]
    model, guide, x = by_hand.model, by_hand.guide, by_hand.x
    params = models.BY_HAND_THETA, models.BY_HAND_PHI

    def hand(theta, phi, latents, data):
        one = lambda s: by_hand.log_q(phi, {n: v[s][None] for n, v in latents.items()}, data["x"][s])
        return -by_hand.scale * sum(jnp.sum(one(s)) for s in range(3)) / 3 + 0.0 * theta["mu"]

    @jax.jit
    def all_of():
        latents, data = dream(model, 3, x, params=params[0])
        package = lambda *p: rws_jax.sleep_phi_loss(*p, *seeded(model, guide), x, num_particles=3)
        both = [package, lambda *p: hand(*p, latents, data)]
        return data, *(jax.value_and_grad(loss, argnums=(0, 1))(*params) for loss in both)

    data, found, expected = all_of()
    chex.assert_trees_all_close(found, expected, rtol=2e-5)
    assert found[1][0]["mu"] == 0.0
    is_placeholder = ~models.MASK if name == "masked" else jnp.zeros(jnp.shape(x), bool)
    assert jnp.array_equal(data["x"][0] == x, is_placeholder)


def test_hand_numbers_on_three_particles():
    """Weights 1/2, 1/3, 1/6 by choice: w = 3, 2, 1 with q = 1/4 each; the control variate takes 1/3 from each.

    With r = 1/8, 1/4, 1/2 the weights are 6/8.5, 2/8.5, 0.5/8.5, and q / r = 2, 1, 1/2.
    """
    log_p, log_q = jnp.log(jnp.array([3.0, 2.0, 1.0]) / 4.0), jnp.log(jnp.full(3, 0.25))
    w = jnp.array([3.0, 2.0, 1.0]) / 6.0
    assert jnp.allclose(theta_loss(scored(log_p, log_q)), -jnp.log(2.0))  # mean weight 2
    assert jnp.allclose(score.phi_loss(scored(log_p, log_q)), jnp.log(4.0))
    gradient = lambda log_r, loss=score.phi_loss: jax.grad(lambda log_q: loss(scored(log_p, log_q, log_r)))(log_q)
    assert jnp.allclose(gradient(None, score.plain_phi_loss), -w)
    assert jnp.allclose(gradient(None), -(w - 1 / 3), atol=1e-6)
    log_r = jnp.log(jnp.array([1 / 8, 1 / 4, 1 / 2]))
    assert jnp.allclose(theta_loss(scored(log_p, log_q, log_r)), -jnp.log(8.5 / 3))
    w = jnp.array([6.0, 2.0, 0.5]) / 8.5
    assert jnp.allclose(gradient(log_r, score.plain_phi_loss), -w)
    assert jnp.allclose(gradient(log_r), -(w - jnp.array([2.0, 1.0, 0.5]) / 3), atol=1e-6)
    # Draws that move by 1, 2, 3: minus the sum of w (1 - w) times these.
    path = lambda t: scored(log_p, log_q, log_w_of_draw=t * jnp.array([1.0, 2.0, 3.0]))
    slope = jnp.array([1 / 4, 2 / 9, 5 / 36])
    found = jax.grad(lambda t: dreg.phi_loss(path(t)))(1.0)
    assert jnp.allclose(found, -jnp.sum(slope * jnp.array([1.0, 2.0, 3.0])))
    assert jnp.allclose(dreg.phi_loss(path(1.0)), jnp.log(4.0))
    # VIMCO: the bound log 2, minus that of the others with the geometric mean of theirs, minus the weight.
    others = jnp.array([2.0 + 1.0 + 2.0**0.5, 3.0 + 1.0 + 3.0**0.5, 3.0 + 2.0 + 6.0**0.5]) / 3.0
    expected = -(jnp.log(2.0) - jnp.log(others) - jnp.array([3.0, 2.0, 1.0]) / 6.0)
    assert jnp.allclose(vimco.phi_loss(scored(log_p, log_q)), -jnp.log(2.0))
    assert jnp.allclose(gradient(None, vimco.phi_loss), expected, atol=1e-6)
    assert jnp.allclose(sleep.dream_loss(ScoredDreams(log_q, Units((), 2.0))), 2.0 * jnp.log(4.0))


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
            of_model, of_guide = seed(normal_model, key), seed(normal_guide, jax.random.fold_in(key, 1))
            particles = wake(of_model, of_guide, jnp.ones(n), num_particles=100, params=({}, {"m": m}))
            return score.phi_loss(particles.joint())

        return jax.grad(loss)(jnp.array(0.0)) / n

    grads = jax.jit(jax.vmap(grad))(jax.random.split(jax.random.key(n), 2000))
    assert jnp.abs(grads.mean() - decayed) < 0.02


@pytest.mark.floors
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
    draws = jax.jit(lambda data: draw(programs_of(model, guide, {}, phi, data), 8))(data)
    assert draws.plates["data"].shape == (8, 5)
    assert jnp.all(draws.plates["data"] == draws.plates["data"][:1])
    assert jnp.all(jnp.abs(draws.latents["z"] - data[draws.plates["data"]]) < 1.0)
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

    particles = wake(model, guide, jnp.ones(5), num_particles=6)
    assert particles.log_p.shape == particles.log_q.shape == (6,)
    particles = wake(nested_model, nested_guide, jnp.ones((3, 4, 2)), num_particles=6)
    assert particles.log_p.shape == particles.log_q.shape == (6, 3, 4)
    z = drawn(nested_model, nested_guide, {}, jnp.ones((3, 4, 2)), num_particles=6)["z"]
    by_hand = (norm.logpdf(z) + norm.logpdf(1.0, z)).sum(axis=-1)
    assert jnp.allclose(particles.log_p, by_hand, rtol=1e-5)


@pytest.mark.floors
def test_mask_and_scale_handlers_count_as_written():
    mask = jnp.array([True, False, True])

    def model(x):
        with numpyro.plate("data", 3), numpyro.handlers.scale(scale=2.0):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).mask(mask))
            with numpyro.handlers.mask(mask=mask):
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 3), numpyro.handlers.mask(mask=mask):
            numpyro.sample("z", dist.Normal(0.5, 1.0))

    x = jnp.array([1.0, jnp.nan, -1.0])
    z = drawn(model, guide, {}, x, num_particles=5)["z"]
    particles = wake(model, guide, x, num_particles=5)
    likelihood = jnp.where(mask[None], norm.logpdf(jnp.nan_to_num(x)[None], z), 0.0)
    prior = jnp.where(mask[None], norm.logpdf(z), 0.0)
    assert jnp.allclose(particles.log_p, 2.0 * (prior + likelihood), rtol=1e-5)
    assert jnp.allclose(particles.log_q, jnp.where(mask[None], norm.logpdf(z, 0.5), 0.0), rtol=1e-5)


def test_without_latents_the_bound_is_the_evidence():
    def model(x):
        with numpyro.plate("data", 3):
            numpyro.sample("x", dist.Normal(numpyro.param("mu", 0.0), 1.0), obs=x)

    x, params = jnp.array([1.0, 2.0, -1.0]), ({"mu": jnp.array(0.5)}, {})
    loss = lambda *params: rws_jax.wake_theta_loss(*params, *seeded(model, lambda x: None), x, num_particles=2)
    value, grads = value_and_grads(loss)(*params)
    assert jnp.allclose(value, -norm.logpdf(x, 0.5).sum(), rtol=1e-6)
    assert jnp.allclose(grads[0]["mu"], -jnp.sum(x - 0.5), rtol=1e-6)


@pytest.mark.usefixtures("allow_key_reuse")
def test_a_defensive_guide_sees_the_minibatch_of_the_guide():
    """Proposals of u are near the data that it picks: those of the model's minibatch, or no particle would fit."""
    data = jnp.arange(50.0)

    def program(name):
        def run(data):
            with numpyro.plate("data", 50, subsample_size=5) as index:
                z = numpyro.sample(
                    "z", dist.Normal(data[index] if name == "u" else 200.0, 1.0 if name == "u" else 100.0)
                )
                if name == "model":
                    numpyro.sample("x", dist.Normal(z, 0.1), obs=data[index])

        return run

    u = seed(program("u"), 5)
    programs_ = programs_of(program("model"), program("guide"), {}, {}, data, defensive_guide=u)
    draws = draw(programs_, 8, 0.5)
    near = jnp.abs(draws.latents["z"] - data[draws.plates["data"]]) < 5.0
    assert 0.3 < near.mean() < 0.8


# JAX transformations


@pytest.mark.slow
@by_loss
def test_grad_jit_vmap_and_scan_give_the_numbers_of_eager_mode(loss):
    data_sets = jnp.array([0.5, -1.0])
    keys = jax.random.split(jax.random.key(0), 2)

    def value(phi, key, x):
        model, guide = seed(models.gaussian_model, key), seed(models.gaussian_guide, jax.random.fold_in(key, 1))
        return loss(models.BY_HAND_THETA, phi, model, guide, x, num_particles=3)

    phi = models.BY_HAND_PHI
    value_and_grad = jax.value_and_grad(value)
    eager = [value_and_grad(phi, k, x) for k, x in zip(keys, data_sets, strict=True)]
    eager = jax.tree.map(lambda *leaves: jnp.stack(leaves), *eager)
    vmapped = jax.vmap(value_and_grad, (None, 0, 0))(phi, jax.random.clone(keys), data_sets)
    body = lambda carry, inputs: (carry, jax.jit(value_and_grad)(phi, *inputs))
    _, scanned = jax.lax.scan(body, None, (jax.random.clone(keys), data_sets))
    chex.assert_trees_all_close(eager, vmapped, rtol=1e-5)
    chex.assert_trees_all_close(eager, scanned, rtol=1e-5)


def test_a_particle_depends_on_the_seed_and_its_index_alone():
    model, guide, x = models.BY_HAND["scan"][:3]
    z_of = lambda particles: draw(programs_of(model, guide, {}, models.BY_HAND_PHI, x), particles).latents["z"]
    ten = z_of(10)
    chex.assert_trees_all_equal(z_of(4), ten[:4])
    chex.assert_trees_all_equal(z_of(jnp.array([7, 3])), ten[jnp.array([7, 3])])
    assert len({float(z[0]) for z in ten}) == 10


@pytest.mark.floors
@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "legacy"])
def test_typed_and_legacy_keys_give_the_same_loss(key):
    model, guide = seed(models.binary_model, key(1)), seed(models.binary_guide, key(2))
    reference = seed(models.binary_model, 1), seed(models.binary_guide, 2)
    params = models.BINARY_THETA, models.BINARY_PHI
    loss = lambda *programs_: rws_jax.wake_theta_loss(*params, *programs_, models.BINARY_DATA)
    chex.assert_trees_all_equal(*jax.jit(lambda: (loss(model, guide), loss(*reference)))())
