"""Nested particles: expectations by enumeration, formulas by hand on the same draws, closed forms."""

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import scan
from numpyro.handlers import seed

import rws_jax
from rws_jax.estimators import score
from rws_jax.estimators.bound import theta_loss
from rws_jax.estimators.nested import NestedParticle, NestedScored
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.vectorized import Vectorized
from rws_jax.programs.program import Index
from rws_jax.programs.run import Draws
from tests.estimators import nested_cases
from tests.estimators.nested_cases import CASES, PARAMS
from tests.models import log_bernoulli, rows
from tests.oracles import programs_of, seeded

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
LOSSES = theta_loss, score.plain_phi_loss, score.phi_loss


# Formulas by hand, on the same draws


@pytest.mark.parametrize("name", rows(CASES, fast=[]))
def test_losses_and_gradients_are_those_of_formulas_by_hand(name):
    """With common and with independent numbers; of log densities that NumPyro computes in its own traces."""
    case, params = CASES[name], PARAMS[name]
    num_data = len(case.x) if case.data_axes is not None else None

    def by_package(params, common):
        programs_ = seeded(case.model, case.guide)
        options = {"num_local_particles": 3, "local_numbers": "common" if common else "independent"}
        options |= {"num_particles": 2, "data_axes": case.data_axes}
        theta = rws_jax.wake_theta_loss(*params, *programs_, case.x, **options)
        plain = rws_jax.wake_phi_loss(*params, *programs_, case.x, **options, control_variate=False)
        return theta, plain, rws_jax.wake_phi_loss(*params, *programs_, case.x, **options)

    def by_hand(params, draws):
        if num_data is None:
            return nested_cases.losses_by_hand(case, params, draws, case.x)
        of_datum = lambda n: jax.tree.map(lambda leaf: leaf[:, n], draws)
        losses = [nested_cases.losses_by_hand(case, params, of_datum(n), case.x[n]) for n in range(num_data)]
        return tuple(map(sum, zip(*losses, strict=True)))

    @partial(jax.jit, static_argnums=0)
    def run(common):
        draws = jax.lax.stop_gradient(nested_cases.draws_of(case, params, 2, 3, common))
        with_gradients = lambda losses: (losses(params), jax.jacrev(losses)(params))
        return with_gradients(partial(by_package, common=common)), with_gradients(partial(by_hand, draws=draws))

    for common in (True, False):
        found, expected = run(common)
        chex.assert_trees_all_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
        for of_found, of_hand, kind in zip(found[1], expected[1], ("theta", "phi", "phi"), strict=True):
            trained, other = (0, 1) if kind == "theta" else (1, 0)
            chex.assert_trees_all_close(of_found[trained], of_hand[trained], rtol=2e-4, atol=2e-5)
            assert all(jnp.all(leaf == 0.0) for leaf in jax.tree.leaves(of_found[other]))


# Two levels of binary latents, K = L = 2: the sum over all draws

K = L = 2
DATA = jnp.array([1.0, 0.0])
DISCRETE_THETA = {"p": jnp.array(-0.3), "t": jnp.array([-0.6, 0.9]), "tx": jnp.array([[-1.2, 0.4], [0.8, 1.5]])}
LOCAL = {"dependent": jnp.array([[0.4, -0.7], [-1.1, 0.8]]), "mean-field": jnp.array([0.4, -0.7])}


def discrete_model(x):
    p, t, tx = (numpyro.param(name, DISCRETE_THETA[name]) for name in ("p", "t", "tx"))
    g = numpyro.sample("g", dist.Bernoulli(logits=p))
    numpyro.sample("y", dist.Normal(g, 1.0), obs=0.8)
    with numpyro.plate("elements", 2):
        z = numpyro.sample("z", dist.Bernoulli(logits=t[g]))
        numpyro.sample("x", dist.Bernoulli(logits=tx[g, z]), obs=x)


def discrete_guide(x):
    a, b = numpyro.param("a", 0.7), numpyro.param("b", LOCAL["dependent"])
    g = numpyro.sample("g", dist.Bernoulli(logits=a))
    with numpyro.plate("elements", 2):
        numpyro.sample("z", dist.Bernoulli(logits=b[g] if b.ndim == 2 else b))


def discrete_log_p(theta, g, z, x):
    """Of the global with its datum, and of each element."""
    of_global = log_bernoulli(theta["p"], g) - 0.5 * (0.8 - g) ** 2 - 0.5 * jnp.log(2 * jnp.pi)
    return of_global, log_bernoulli(theta["t"][g], z) + log_bernoulli(theta["tx"][g, z], x)


def local_logits(phi, g):
    """Logits of both elements for an array of globals, elements last."""
    return phi["b"][g] if phi["b"].ndim == 2 else jnp.broadcast_to(phi["b"], (*g.shape, 2))


def discrete_log_evidence(theta):
    """By enumeration of the global, and of each element given it."""
    g, z = jnp.arange(2)[:, None, None], jnp.arange(2)[None, :, None]
    of_global, of_elements = discrete_log_p(theta, g, z, DATA)
    return logsumexp(of_global[:, 0, 0] + logsumexp(of_elements, axis=1).sum(-1))


def all_draws(log_q_g, q_z, numbers):
    """Globals (draws, K) and locals (draws, K, L, elements), and the probability of each.

    Common numbers push one uniform through the inverse distribution functions of all globals: of the cells between the
    probabilities of a one, those to the right of a global's own are its zeros.

    Args:
      log_q_g: log probability of each global.
      q_z: probability of a one, shape (globals, elements).
      numbers: as option `local_numbers`.
    """
    globals_ = jnp.array(list(itertools.product(range(len(log_q_g)), repeat=K)))
    probs_g = jnp.exp(log_q_g[globals_].sum(-1))
    if numbers == "independent":
        z = jnp.array(list(itertools.product(range(2), repeat=K * L * 2))).reshape(-1, K, L, 2)
        q = q_z[globals_][:, None, :, None]
        probs = jnp.where(z == 1, q, 1 - q).prod((2, 3, 4))
        z = jnp.broadcast_to(z, (len(globals_), *z.shape))
    else:
        cells = jnp.array(list(itertools.product(range(len(log_q_g) + 1), repeat=L * 2))).reshape(-1, L, 2)
        borders = jnp.sort(q_z, axis=0)
        of_cell = jnp.diff(borders, axis=0, prepend=0.0, append=1.0)
        probs = of_cell[cells, jnp.arange(2)].prod((1, 2))[None]
        rank = jnp.argsort(jnp.argsort(q_z, axis=0), axis=0)[globals_]  # (draws, K, element)
        z = (cells[None, :, None] <= rank[:, None, :, None]).astype(int)
    probs = probs_g[:, None] * probs
    g = jnp.broadcast_to(globals_[:, None], (*probs.shape, K))
    return g.reshape(-1, K), z.reshape(-1, K, L, 2), probs.ravel()


@dataclass(frozen=True)
class Given(WakeParticle):
    """A particle that draws what it is given: arrays with axes of particles of the globals, and of local ones."""

    latents: Any = None

    def draw(self, programs, index):
        at = (index.particle, *(index.local.numbers if index.local else (0,)))
        return Draws({"g": self.latents[0][at[:1]], "z": self.latents[1][at]}, {})

    def drawn(self, programs, index):
        draws = self.draw(programs, index)
        return self.run(programs, index, draws), draws


def expectations(package, params, draws, probs):
    """Of values, and of gradients by theta and phi, of all losses."""
    values = jax.vmap(package, (None, None, 0))(*params, draws)
    grads = jax.vmap(jax.jacrev(package, argnums=(0, 1)), (None, None, 0))(*params, draws)
    return jax.tree.map(lambda leaf: jnp.tensordot(probs, leaf, 1), (values, grads))


def combinations(fast):
    """Which random numbers local particles have, and whether their guide depends on the global."""
    marks_of = lambda row: pytest.mark.floors if row == fast else pytest.mark.slow
    rows_ = itertools.product(["independent", "common"], ["dependent", "mean-field"])
    return [pytest.param(*row, marks=marks_of(row)) for row in rows_]


@pytest.mark.parametrize(("numbers", "local"), combinations(fast=("common", "dependent")))
def test_expectations_equal_enumeration(numbers, local):
    """All draws of two globals and of two locals of two elements for each: the bias of finite K and L is part of it.

    The mean weight is the evidence; the control variate's expected gradient is zero.
    """
    params = DISCRETE_THETA, {"a": jnp.array(0.7), "b": LOCAL[local]}

    def package(theta, phi, draws):
        particle = NestedParticle(Given(latents=draws), L, common=numbers == "common")
        scored = Vectorized()(particle, programs_of(discrete_model, discrete_guide, theta, phi, DATA), K)
        control_variate = score.phi_loss(scored) - score.plain_phi_loss(scored)
        evidence = jnp.mean(jnp.exp(scored.log_weights))
        return theta_loss(scored), score.plain_phi_loss(scored), control_variate, evidence

    def by_hand(theta, phi, draws):
        g, z = draws
        p_g, p_z = discrete_log_p(theta, g[:, None, None], z, DATA)
        q_g, q_z = log_bernoulli(phi["a"], g), log_bernoulli(local_logits(phi, g)[:, None], z)
        own = p_z - jax.lax.stop_gradient(q_z)
        log_w = p_g[:, 0, 0] - jax.lax.stop_gradient(q_g) + (logsumexp(own, axis=1) - jnp.log(L)).sum(-1)
        w = jax.lax.stop_gradient(jax.nn.softmax(log_w))
        w_z = w[:, None, None] * jax.lax.stop_gradient(jax.nn.softmax(own, axis=1))
        theta_loss = -(logsumexp(log_w) - jnp.log(K))
        return theta_loss, -jnp.sum(w * q_g) - jnp.sum(w_z * q_z), jnp.zeros(()), jnp.mean(jnp.exp(log_w))

    @jax.jit
    def run():
        log_q_g, q_z = log_bernoulli(params[1]["a"], jnp.arange(2)), local_logits(params[1], jnp.arange(2))
        *draws, probs = all_draws(log_q_g, jax.nn.sigmoid(q_z), numbers)
        return probs.sum(), *(expectations(losses, params, tuple(draws), probs) for losses in (package, by_hand))

    total, found, expected = run()
    assert total == pytest.approx(1.0, abs=1e-5)
    evidence = jnp.exp(discrete_log_evidence(params[0]))
    assert found[0][3] == pytest.approx(float(evidence), rel=3e-6)
    chex.assert_trees_all_close(found[0][:2], expected[0][:2], rtol=1e-5)
    of_theta, of_phi = found[1][0][0], found[1][1][1]
    chex.assert_trees_all_close(of_theta, expected[1][0][0], atol=3e-6)
    chex.assert_trees_all_close(of_phi, expected[1][1][1], atol=3e-6)
    assert all(jnp.all(jnp.abs(leaf) > 1e-4) for leaf in jax.tree.leaves((of_theta, of_phi)))
    chex.assert_trees_all_close(found[1][2][1], jax.tree.map(jnp.zeros_like, params[1]), atol=1e-6)
    for loss, other in ((0, 1), (1, 0), (2, 0)):  # what a loss does not train
        assert all(jnp.all(leaf == 0.0) for leaf in jax.tree.leaves(found[1][loss][other]))


# Impossible draws: of a global, of a local whatever the global, and of a local given one of the globals
ALIVE_G = jnp.array([0.3, 0.0, 0.2])
ALIVE_Z = jnp.array([[[0.4, 0.7], [0.1, 0.2]], [[0.5, 0.5], [0.5, 0.5]], [[0.3, 0.0], [0.0, 0.6]]])  # (g, z, element)
TABLES = {"a": jnp.array([0.1, 0.9, -0.5]), "b": jnp.array([[0.4, -0.7], [0.2, 0.3], [-1.1, 0.8]])}


def nested_levels():
    """The levels of programs with one plate of two elements."""
    programs_ = programs_of(discrete_model, discrete_guide, {}, {"a": jnp.array(0.7), "b": LOCAL["dependent"]}, DATA)
    programs_ = programs_.with_params((DISCRETE_THETA, programs_.params[1]))
    return NestedParticle(WakeParticle(), L, common=True).levels(programs_, Index(0))


@pytest.mark.parametrize(("numbers", "local"), combinations(fast=None))
def test_expectations_where_particles_can_die(numbers, local):
    """Of whole draws, of one global alone and of elements below it: dead units train nothing."""
    phi = TABLES if local == "dependent" else TABLES | {"b": jnp.broadcast_to(TABLES["b"][0], (3, 2))}
    levels = nested_levels()

    def log_densities(theta, phi, draws):
        g, z = draws
        table_g, table_z = ALIVE_G * jnp.exp(theta), ALIVE_Z * jnp.exp(theta * jnp.array([0.5, -1.0]))[:, None]
        log_of = lambda p: jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf)
        log_p = log_of(table_g[g])[:, None], log_of(table_z[g[:, None, None], z, jnp.arange(2)])
        return log_p, (jax.nn.log_softmax(phi["a"])[g][:, None], log_bernoulli(phi["b"][g][:, None], z))

    def package(theta, phi, draws):
        log_p, log_q = log_densities(theta, phi, draws)
        scored = NestedScored(list(log_p), list(log_q), levels)
        control_variate = score.phi_loss(scored) - score.plain_phi_loss(scored)
        losses = jnp.where(jnp.isfinite(theta_loss(scored)), theta_loss(scored), 0.0), score.plain_phi_loss(scored)
        return *losses, control_variate, jnp.mean(jnp.exp(scored.log_weights))

    def by_hand(theta, phi, draws):
        """In probabilities, where nothing is infinite."""
        (p_g, p_z), (q_g, q_z) = log_densities(theta, phi, draws)
        own = jnp.exp(p_z) / jax.lax.stop_gradient(jnp.exp(q_z))
        weight = (jnp.exp(p_g) / jax.lax.stop_gradient(jnp.exp(q_g)))[:, 0] * own.mean(1).prod(-1)
        share = lambda x, axis: x / jnp.where(x.sum(axis, keepdims=True) > 0, x.sum(axis, keepdims=True), 1.0)
        w = jax.lax.stop_gradient(share(weight, 0))
        w_z = w[:, None, None] * jax.lax.stop_gradient(share(own, 1))
        alive = weight.sum() > 0
        theta_loss = -jnp.where(alive, jnp.log(jnp.where(alive, weight.mean(), 1.0)), 0.0)
        return theta_loss, -jnp.sum(w[:, None] * q_g) - jnp.sum(w_z * q_z), jnp.zeros(()), weight.mean()

    @jax.jit
    def run():
        *draws, probs = all_draws(jax.nn.log_softmax(phi["a"]), jax.nn.sigmoid(phi["b"]), numbers)
        both = [expectations(losses, (jnp.array(0.0), phi), tuple(draws), probs) for losses in (package, by_hand)]
        gradients = jax.vmap(jax.jacrev(package, argnums=(0, 1)), (None, None, 0))(jnp.array(0.0), phi, tuple(draws))
        dead = jax.vmap(lambda draws: by_hand(jnp.array(0.0), phi, draws)[3] == 0.0)(tuple(draws))
        return probs, dead, gradients, both

    probs, dead, gradients, (found, expected) = run()
    assert probs.sum() == pytest.approx(1.0, abs=1e-5)
    assert 0.05 < probs[dead].sum() < 0.95
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    assert not any(jnp.any(leaf[dead]) for leaf in jax.tree.leaves(gradients[:3]))
    assert found[0][3] == pytest.approx(float((ALIVE_G * ALIVE_Z.sum(1).prod(-1)).sum()), rel=3e-6)
    chex.assert_trees_all_close(found[1][0][0], expected[1][0][0], atol=3e-6)
    chex.assert_trees_all_close(found[1][1][1], expected[1][1][1], atol=3e-6)
    chex.assert_trees_all_close(found[1][2][1], jax.tree.map(jnp.zeros_like, phi), atol=1e-6)
    of_control_variate = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in jax.tree.leaves(gradients[2][1])])
    assert jnp.max(of_control_variate) > 0.1  # there is one


# From keys to losses


def test_which_draws_are_the_same():
    """Common numbers are so for all particles further out: of three levels, also for those in between."""

    def guide(x):
        numpyro.sample("g", dist.Normal(0.0, 1.0))
        with numpyro.plate("schools", 2, dim=-3):
            numpyro.sample("s", dist.Normal(0.0, 1.0))
            with numpyro.plate("students", 3, dim=-2):
                numpyro.sample("z", dist.Normal(0.0, 1.0))

    case, params = CASES["three levels"]._replace(guide=guide), (nested_cases.THETA, {})
    num, num_local = 4, 5
    of_all = jax.jit(lambda common: nested_cases.draws_of(case, params, num, num_local, common), static_argnums=0)
    num_of = lambda values: len(set(values.ravel().tolist()))
    for common in (True, False):
        g, s, z = (next(iter(of_level.values())) for of_level in of_all(common))
        assert g.shape == (num,)
        assert s.shape == (num, num_local, 2, 1, 1)
        assert z.shape == (num, num_local, num_local, 2, 3, 1)
        assert num_of(g) == num
        assert num_of(s) == num_local * 2 * (1 if common else num)
        assert num_of(z) == num_local * 6 * (1 if common else num * num_local)
        if common:
            chex.assert_trees_all_equal(s, jnp.broadcast_to(s[:1], s.shape))
            chex.assert_trees_all_equal(z, jnp.broadcast_to(z[:1, :1], z.shape))


def test_which_draws_are_the_same_in_a_scan():
    """Sites in its body fold the numbers of their own plates, at each step."""

    def guide(x):
        numpyro.sample("g", dist.Normal(0.0, 1.0))

        def step(carry, x):
            numpyro.sample("h", dist.Normal(0.0, 1.0))
            with numpyro.plate("schools", 3):
                numpyro.sample("z", dist.Normal(0.0, 1.0))
            return carry, None

        scan(step, None, x)

    case, params = CASES["scan"]._replace(guide=guide), (nested_cases.THETA, {})
    of_all = jax.jit(lambda common: nested_cases.draws_of(case, params, 4, 5, common), static_argnums=0)
    num_of = lambda values: len(set(values.ravel().tolist()))
    for common in (True, False):
        of_globals, of_locals = of_all(common)
        assert of_globals["h"].shape == (4, 2)
        assert of_locals["z"].shape == (4, 5, 2, 3)
        assert num_of(of_globals["h"]) == 4 * 2
        assert num_of(of_locals["z"]) == 5 * 2 * 3 * (1 if common else 4)


def test_a_draw_depends_on_its_own_numbers_alone():
    """Not on how many particles there are; independent local numbers do depend on how many are local."""
    case, params = CASES["one plate"], PARAMS["one plate"]
    of = jax.jit(partial(nested_cases.draws_of, case, params), static_argnums=(0, 1, 2))
    few, many = of(2, 3, True), of(4, 6, True)
    chex.assert_trees_all_equal(few, [jax.tree.map(lambda x: x[:2], many[0]), {"z": many[1]["z"][:2, :3]}])
    chex.assert_trees_all_equal(of(2, 3, False), jax.tree.map(lambda x: x[:2], of(4, 3, False)))


def log_evidence(case):
    """Of a model whose latents and data are jointly Gaussian: the density is exp of a quadratic form."""
    if case.model is nested_cases.siblings_model:
        g = jnp.linspace(-8.0, 8.0, 4001)
        rate, counts = jnp.exp(0.3 * g)[:, None], jnp.array([0.0, 2.0])
        of_counts = (jnp.log(rate) - (counts + 1) * jnp.log1p(rate)).sum(1)
        of_x = norm.logpdf(case.x, g[:, None], jnp.sqrt(0.74)).sum(1)
        return logsumexp(norm.logpdf(g, 0.2) + of_x + of_counts) + jnp.log(g[1] - g[0])

    def of_datum(x):
        def log_density(z):
            return numpyro.infer.util.log_density(case.model, (x,), {}, nested_cases.THETA | unravel(z))[0]

        with numpyro.handlers.seed(rng_seed=0):
            run = numpyro.handlers.trace(case.model).get_trace(x)
        is_latent = lambda site: site["type"] == "sample" and not site["is_observed"]
        start, unravel = ravel_pytree({name: site["value"] for name, site in run.items() if is_latent(site)})
        precision = -jax.hessian(log_density)(jnp.zeros_like(start))
        gradient = jax.grad(log_density)(jnp.zeros_like(start))
        mode = jnp.linalg.solve(precision, gradient)
        return log_density(mode) + 0.5 * (len(start) * jnp.log(2 * jnp.pi) - jnp.linalg.slogdet(precision)[1])

    return of_datum(case.x) if case.data_axes is None else sum(of_datum(x) for x in case.x)


# A draw that the guide alone has makes the mean infinite; densities of masked latents and of minibatches are no joint.
UNBIASED = [name for name in CASES if name not in ("auxiliary", "masked", "minibatch of units", "scope")]


@pytest.mark.parametrize("name", rows(UNBIASED, fast=[]))
@pytest.mark.parametrize("numbers", ["common", "independent"])
def test_the_mean_estimate_is_the_evidence(name, numbers):
    """Over 20,000 seeds, from keys to losses at K = L = 2; within 5 standard errors, a false alarm in 50,000 runs."""
    case, params, num_seeds = CASES[name], PARAMS[name], 20_000

    def log_estimate(key):
        programs_ = seed(case.model, key), seed(case.guide, jax.random.fold_in(key, 1))
        options = {"num_particles": 2, "num_local_particles": 2, "local_numbers": numbers}
        return -rws_jax.wake_theta_loss(*params, *programs_, case.x, **options, data_axes=case.data_axes)

    log_estimates = jax.jit(jax.vmap(log_estimate))(jax.random.split(jax.random.key(3), num_seeds))
    ratios = jnp.exp(log_estimates - log_evidence(case))
    error = jnp.std(ratios) / jnp.sqrt(num_seeds)
    assert error < 0.05
    assert abs(jnp.mean(ratios) - 1.0) < 5 * error


# A hierarchical Gaussian, whose evidence and posterior are known


NUM_ELEMENTS, SD_Z, SD_X = 100, 0.7, 0.5
GAUSSIAN_X = 0.4 + 0.9 * jax.random.normal(jax.random.key(8), (NUM_ELEMENTS,))


def gaussian_model(x):
    g = numpyro.sample("g", dist.Normal(numpyro.param("m", 0.0), 1.0))
    with numpyro.plate("elements", len(x)):
        z = numpyro.sample("z", dist.Normal(g, SD_Z))
        numpyro.sample("x", dist.Normal(z, SD_X), obs=x)


def gaussian_guide(x):
    g = numpyro.sample("g", dist.Normal(numpyro.param("a", 0.0), jnp.exp(numpyro.param("s", 0.0))))
    with numpyro.plate("elements", len(x)):
        gain = SD_Z**2 / (SD_Z**2 + SD_X**2)
        shift, scale = numpyro.param("c", 0.0), SD_X * jnp.sqrt(gain)
        numpyro.sample("z", dist.Normal(g + gain * (x - g) + shift, scale))


def gaussian_answers(m):
    """Log evidence of elements that are marginally N(g, SD_Z^2 + SD_X^2), and mean and deviation of g | x."""
    var = SD_Z**2 + SD_X**2
    num, mean = NUM_ELEMENTS, GAUSSIAN_X.mean()
    precision = 1 + num / var
    location = (m + num * mean / var) / precision
    of_mean = norm.logpdf(mean, m, jnp.sqrt(1 + var / num)) - norm.logpdf(mean, 0.0, jnp.sqrt(var / num))
    return norm.logpdf(GAUSSIAN_X, 0.0, jnp.sqrt(var)).sum() + of_mean, location, precision**-0.5


@pytest.mark.parametrize("numbers", ["common", "independent"])
def test_an_exact_guide_of_a_hundred_elements_has_weights_that_are_all_the_evidence(numbers):
    """The effective sample size is the number of particles, and the gradient of the guide has no variance."""
    m = jnp.array(0.3)
    evidence, location, deviation = gaussian_answers(m)
    params = {"m": m}, {"a": location, "s": jnp.log(deviation), "c": jnp.array(0.0)}

    def run(theta, phi):
        programs_ = programs_of(gaussian_model, gaussian_guide, theta, phi, GAUSSIAN_X)
        scored = Vectorized()(NestedParticle(WakeParticle(), 4, numbers == "common"), programs_, 6)
        return theta_loss(scored), score.phi_loss(scored), scored.summary.effective_sample_size

    (loss, _, ess), (_, gradient, _) = jax.jit(lambda: (run(*params), jax.jacrev(run, 1)(*params)))()
    assert loss == pytest.approx(-float(evidence), rel=1e-5)
    assert ess == pytest.approx(6.0, rel=1e-3)
    chex.assert_trees_all_close(gradient, jax.tree.map(jnp.zeros_like, gradient), atol=0.02)


@pytest.mark.slow
def test_gradients_of_many_particles_are_those_of_evidence_and_divergence():
    """Of 100 elements, with a guide that is wrong in all its parameters; 40 seeds, within 5 standard errors.

    The bias, which is of order 1/K, is far below these.
    """
    m, num_seeds = jnp.array(0.3), 40
    evidence_of = lambda m: gaussian_answers(m)[0]
    _, location, deviation = gaussian_answers(m)
    phi = {"a": location + deviation, "s": jnp.log(1.5 * deviation), "c": jnp.array(0.1)}

    def losses(theta, phi, key):
        programs_ = seed(gaussian_model, key), seed(gaussian_guide, jax.random.fold_in(key, 1))
        options = {"num_particles": 300, "num_local_particles": 40, "local_numbers": "independent"}
        return (
            rws_jax.wake_theta_loss(theta, phi, *programs_, GAUSSIAN_X, **options),
            rws_jax.wake_phi_loss(theta, phi, *programs_, GAUSSIAN_X, **options),
        )

    def gradients(key):
        (of_theta, _), (_, of_phi) = jax.jacrev(losses, argnums=(0, 1))({"m": m}, phi, key)
        return {**of_theta, **of_phi}

    found = jax.jit(lambda keys: jax.lax.map(gradients, keys))(jax.random.split(jax.random.key(1), num_seeds))
    # E under the posterior of -d log q: of the location, of the log of the deviation, and of the shift of all locals.
    var_q = (1.5 * deviation) ** 2
    gain = SD_Z**2 / (SD_Z**2 + SD_X**2)
    expected = {
        "m": -jax.grad(evidence_of)(m),
        "a": (phi["a"] - location) / var_q,
        "s": 1 - (deviation**2 + deviation**2) / var_q,
        "c": NUM_ELEMENTS * phi["c"] / (SD_X**2 * gain),
    }
    for name, values in found.items():
        error = jnp.std(values) / jnp.sqrt(num_seeds)
        assert abs(values.mean() - expected[name]) < 5 * error + 0.01 * abs(expected[name]), name
        assert error < 0.05 * abs(expected[name]) + 0.05, name


@pytest.mark.slow
def test_an_exact_guide_of_a_discrete_model_gives_the_gradient_of_the_evidence():
    """By enumeration at K = L = 2: with equal weights it has no bias; and the guide's gradient is zero."""
    g, z = jnp.arange(2), jnp.arange(2)
    of_global, of_z = discrete_log_p(DISCRETE_THETA, g[:, None, None], z[None, :, None], DATA)
    log_joint = of_global[:, 0, 0] + logsumexp(of_z, axis=1).sum(-1)
    phi = {"a": log_joint[1] - log_joint[0], "b": of_z[:, 1] - of_z[:, 0]}

    def losses(theta, phi, draws):
        particle = NestedParticle(Given(latents=draws), L, common=False)
        scored = Vectorized()(particle, programs_of(discrete_model, discrete_guide, theta, phi, DATA), K)
        return theta_loss(scored), score.plain_phi_loss(scored)

    @jax.jit
    def run():
        log_q_g, q_z = log_bernoulli(phi["a"], g), jax.nn.sigmoid(phi["b"])
        *draws, probs = all_draws(log_q_g, q_z, "independent")
        return expectations(losses, (DISCRETE_THETA, phi), tuple(draws), probs)[1]

    (of_theta, _), (_, of_phi) = run()
    exact = jax.jit(jax.grad(lambda theta: -discrete_log_evidence(theta)))(DISCRETE_THETA)
    chex.assert_trees_all_close(of_theta, exact, atol=3e-6)
    chex.assert_trees_all_close(of_phi, jax.tree.map(jnp.zeros_like, phi), atol=3e-6)
