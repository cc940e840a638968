"""A compiled guide draws from the density that it says, its weights are exact, and gradients reach their owners alone.

The densities come from NumPyro's own traces, the evidence from closed forms and enumeration.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen as nn
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import flax_module
from numpyro.handlers import seed, substitute, trace

import rws_jax
from tests.guides.cases import CASES, NOISY_OR_STATES, SMALL, Case, compiled, datum_of, weights_of
from tests.guides.models import MODELS
from tests.models import rows

pytestmark = pytest.mark.usefixtures("allow_rank_promotion", "allow_key_reuse")

FAST = {"gaussian", "masked", "minibatch", "tempered", "repeated"}


@functools.cache
def prepared(name):
    case = CASES[name]()
    return case, *compiled(case)


def by_hand(program, numbers, args):
    """The log density of the latents of a run, each site's own, summed."""
    with seed(rng_seed=0), substitute(data=numbers):
        sites = trace(program).get_trace(*args)
    of_site = lambda site: (
        (1.0 if site["scale"] is None else site["scale"]) * jnp.sum(site["fn"].log_prob(site["value"]))
    )
    return sum(of_site(site) for site in sites.values() if site["type"] == "sample")


@pytest.mark.parametrize("name", rows(sorted(CASES.keys() - {"branching"}), fast=FAST))
def test_weights_are_those_of_the_densities_of_both_traces(name):
    case, guide, params = prepared(name)
    weighted = rws_jax.importance_sample(jax.random.key(1), params, case.model, guide, *case.args, num_particles=6)
    log_p = jax.vmap(lambda latents: by_hand(case.model, {**params, **latents}, case.args))(weighted.samples)
    log_q = jax.vmap(lambda latents: by_hand(guide, {**params, **latents}, case.args))(weighted.samples)
    log_w = weighted.scale * weighted.log_weights.reshape(6, -1).sum(axis=1)
    np.testing.assert_allclose(log_p - log_q, log_w, rtol=1e-5, atol=2e-5)
    assert np.ptp(log_q) > 0.1


def test_weights_of_branching_programs_are_those_of_the_densities_of_both_traces():
    case, guide, params = prepared("branching")
    run = functools.partial(rws_jax.importance_sample, num_particles=4, **case.options)
    weighted = run(jax.random.key(1), params, case.model, guide, *case.args)
    assert 0 < weighted.present["b"].sum() < weighted.present["b"].size
    for k, i in np.ndindex(4, 3):
        is_there = lambda name, k=k, i=i: name not in weighted.present or weighted.present[name][k, i]
        there = {name: site[k, i] for name, site in weighted.samples.items() if is_there(name)}
        log_p, log_q = (by_hand(f, {**params, **there}, (case.args[0][i],)) for f in (case.model, guide))
        np.testing.assert_allclose(log_p - log_q, weighted.log_weights[k, i], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", rows(CASES, fast={"gaussian", "tempered", "repeated"}))
def test_the_mean_weight_is_the_exact_evidence(name):
    """Fifteen tables of up to three numbers, of which one in 100,000 is wrong by chance."""
    case, guide, params = prepared(name)
    num = 300 if name == "branching" else 20_000
    options = {"num_particles": num, **case.options}
    weighted = rws_jax.importance_sample(jax.random.key(1), params, case.model, guide, *case.args, **options)
    found = weighted.log_evidence()
    assert found.value.shape == np.shape(case.log_evidence)
    np.testing.assert_array_less(np.abs(found.value - case.log_evidence), 5.0 * found.standard_error + 1e-5)
    assert np.all(found.standard_error < 0.3)


# The prior of "tempered" is counted twice, and no density.
@pytest.mark.parametrize("name", rows([name for name in CASES if name != "tempered"], fast={"gaussian", "masked"}))
def test_an_untrained_guide_is_about_the_prior(name):
    case = CASES[name]()
    guide, args = rws_jax.compile_guide(case.model, **SMALL), datum_of(case)
    numbers = {**case.theta, **weights_of(guide, *args)}

    def apart(rng_key):
        with seed(rng_seed=rng_key), substitute(data=numbers):
            drawn = trace(guide).get_trace(*args)
        latents = {name: site["value"] for name, site in drawn.items() if site["type"] == "sample"}
        observed = {name: site for name, site in of_model(latents).items() if site["is_observed"]}
        scale = lambda site: 1.0 if site["scale"] is None else site["scale"]
        of_data = sum(scale(s) * jnp.sum(s["fn"].log_prob(s["value"])) for s in observed.values())
        own = by_hand(guide, {**numbers, **latents}, args)
        return own - (by_hand(case.model, {**numbers, **latents}, args) - of_data)

    def of_model(latents):
        with seed(rng_seed=0), substitute(data={**numbers, **latents}):
            sites = trace(case.model).get_trace(*args)
        return {name: site for name, site in sites.items() if site["type"] == "sample"}

    keys = jax.random.split(jax.random.key(2), 20)
    found = jnp.stack([apart(k) for k in keys]) if name == "branching" else jax.jit(jax.vmap(apart))(keys)
    assert np.abs(np.mean(found)) < 0.3
    assert np.min(found) > -1.0
    assert np.ptp(found) > 0.0


def test_draws_are_as_frequent_as_their_density_says():
    """Of eight states and two data, each within five standard errors."""
    case, guide, params = prepared("noisy or")
    options = {"num_particles": 20_000}
    drawn = rws_jax.importance_sample(jax.random.key(1), params, case.model, guide, *case.args, **options).samples
    states = jnp.array(NOISY_OR_STATES)

    def log_q(state, datum):
        latents = {f"z{i}": jnp.full(1, value) for i, value in enumerate(state)}
        return by_hand(guide, {**params, **latents}, (datum[None],))

    q = np.exp(jax.jit(jax.vmap(jax.vmap(log_q, (0, None)), (None, 0)))(states, case.args[0]))  # (data, states)
    np.testing.assert_allclose(q.sum(axis=1), 1.0, rtol=1e-5)
    found = np.stack([drawn[f"z{i}"] for i in range(3)], axis=-1)[..., None, :] == NOISY_OR_STATES
    share = found.all(axis=-1).mean(axis=0)
    np.testing.assert_array_less(np.abs(share - q), 5.0 * np.sqrt(q * (1 - q) / 20_000) + 1e-6)


# Ownership


def theta_in_priors(x):
    """Parameters in the prior of a global latent, in that of a plate, and in a network."""
    mu, tau = numpyro.param("mu", 0.3), numpyro.param("tau", 1.2, constraint=dist.constraints.positive)
    network = flax_module("network", nn.Dense(1), input_shape=(1,))
    top = numpyro.sample("top", dist.Normal(mu, tau))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(network(top[None])[0], tau))
        k = numpyro.sample("k", dist.Bernoulli(logits=mu + z))
        numpyro.sample("x", dist.Normal(z + k, 1.0), obs=x)


@functools.cache
def owned():
    x = jnp.array([0.3, -1.0])
    guide = rws_jax.compile_guide(theta_in_priors, **SMALL)
    with seed(rng_seed=0):
        sites = trace(theta_in_priors).get_trace(x)
    theta = {name: site["value"] for name, site in sites.items() if site["type"] == "param"}
    return x, guide, weights_of(guide, x), theta


def losses(model, guide):
    programs = seed(model, jax.random.key(1)), seed(guide, jax.random.key(2))
    for name in ("wake_theta_loss", "wake_phi_loss", "sleep_phi_loss"):
        loss = functools.partial(getattr(rws_jax, name), num_particles=4)
        yield name, lambda theta, phi, x, loss=loss: loss(theta, phi, *programs, x)


@pytest.mark.parametrize("loss", ["wake_theta_loss", "wake_phi_loss", "sleep_phi_loss"])
def test_each_loss_reaches_its_own_parameters_alone(loss):
    x, guide, phi, theta = owned()
    function = dict(losses(theta_in_priors, guide))[loss]
    of_theta, of_phi = jax.jit(jax.grad(function, argnums=(0, 1)))(theta, phi, x)
    own, other = (of_theta, of_phi) if loss == "wake_theta_loss" else (of_phi, of_theta)
    chex.assert_trees_all_equal(other, jax.tree.map(jnp.zeros_like, other))
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves({k: v for k, v in own.items() if k != "guide"}))
    assert loss == "wake_theta_loss" or sum(jnp.any(leaf != 0) for leaf in jax.tree.leaves(own)) > 10


def test_the_gradient_of_theta_is_that_where_the_guide_has_numbers_for_it():
    """The oracle is a guide whose theta is given to it, and that no gradient can reach."""
    x, guide, phi, theta = owned()
    fixed = jax.tree.map(jnp.array, theta)

    def elsewhere(x):
        with substitute(data=fixed):
            guide(x)

    found, expected = (
        jax.jit(jax.grad(dict(losses(theta_in_priors, g))["wake_theta_loss"]))(theta, phi, x)
        for g in (guide, elsewhere)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(found))


# Every weight is trained


def smoothed_backward(x):
    """A scan that runs backward in time, and a latent after it that reads its draws."""

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(0.9 * z, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return z, None

    last, _ = scan(step, 0.0, x, reverse=True)
    numpyro.sample("after", dist.Normal(last, 1.0))
    numpyro.sample("before", dist.Gamma(2.0, jnp.exp(0.1 * last)))


TRAINED = {
    name: CASES[name] for name in ("noisy or", "conjugates", "state space", "branching", "hierarchical", "vectors")
}
TRAINED["backward"] = lambda: Case(smoothed_backward, (jnp.array([0.5, -1.0, 0.3]),), np.zeros(()))
TRAINED["priors"] = lambda: Case(theta_in_priors, (jnp.array([0.3, -1.0]),), np.zeros(()))
# Sites with a prior whose location depends on other latents and whose scale does not: that is zero in standard units.
FIXED_SCALES = {
    "hierarchical": ["z"],
    "backward": ["z", "after", "before"],
    "state space": ["z"],
    "vectors": ["b", "c"],
}


@pytest.mark.parametrize("insomnia", [pytest.param(0.0, id="sleep"), pytest.param(1.0, id="wake")])
@pytest.mark.parametrize("name", rows(TRAINED, fast=set()))
def test_every_weight_is_trained(name, insomnia):
    """Shift and scale are constants; of all other arrays every number moves."""
    case = TRAINED[name]()
    options = {"phi_optimizer": optax.adam(0.01), "insomnia": insomnia, "num_particles": 8, **case.options}
    init, step, *_ = rws_jax.make_step(case.model, rws_jax.compile_guide(case.model, **SMALL), **options)
    state = init(jax.random.key(0), *case.args)
    first = jax.tree.map(np.array, state.phi["guide"])
    for _ in range(4):
        state, _ = step(state, *case.args)
    moved = jax.tree.map(lambda old, new: np.asarray(old != new), first, state.phi["guide"])
    share = {jax.tree_util.keystr(path): leaf.mean() for path, leaf in jax.tree.leaves_with_path(moved) if leaf.size}
    constant = {path for path in share if path.endswith(("['shift']", "['scale']"))}
    assert all(share[path] == 0.0 for path in constant)
    still = {path: part for path, part in share.items() if path not in constant and part < 1.0}
    assert still == {f"['proposals']['{site}']['inputs']['prior']": 0.5 for site in FIXED_SCALES.get(name, ())}


# Training


@pytest.mark.slow
def test_reading_the_latents_before_is_worth_what_explaining_away_is():
    """Eight causes of one set of effects: with proposals that are independent, few particles carry the weight."""
    problem = MODELS["noisy_or"]
    zeros = tuple(jnp.asarray(x) for x in problem.draw(jax.random.key(5), 64))
    shares = {}
    for autoregressive in (True, False):
        guide = rws_jax.compile_guide(problem.model, autoregressive=autoregressive)
        options = {"phi_optimizer": optax.adam(optax.cosine_decay_schedule(3e-3, 1500)), "insomnia": 0.0}
        init, step, get_params = rws_jax.make_step(problem.model, guide, num_sleep_particles=2, **options)[:3]
        state, _ = rws_jax.fit(step, init(jax.random.key(0), *zeros), 1500, *zeros, progress_bar=False)
        params = get_params(state, *zeros)
        weighted = rws_jax.importance_sample(jax.random.key(1), params, problem.model, guide, *zeros, num_particles=100)
        shares[autoregressive] = np.mean(weighted.effective_sample_size()) / 100
    assert shares[True] > 0.95
    assert shares[False] < shares[True] - 0.1
