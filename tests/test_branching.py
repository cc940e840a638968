"""Programs that branch in Python, by paths: what un-jitted particles compute, compiled."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import rws_jax
from rws_jax import branching
from rws_jax.branching import Branching
from tests.oracles import seeded

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
STEERS = {"branching": True}
NUM_BRANCHES = 20


def mixture_model(x):
    logits = numpyro.param("logits", jnp.linspace(0.0, 2.0, NUM_BRANCHES))
    z = int(numpyro.sample("z", dist.Categorical(logits=logits), infer=STEERS))
    if z % 2:
        numpyro.sample("x", dist.Normal(10.0 * z, 5.0), obs=x)
    else:
        numpyro.sample("x", dist.Normal(10.0 * z, 4.0), obs=x)


def mixture_guide(x):
    slope, offset = numpyro.param("slope", jnp.linspace(-0.01, 0.01, NUM_BRANCHES)), numpyro.param("offset", 0.1)
    numpyro.sample("z", dist.Categorical(logits=slope * x + offset), infer=STEERS)


def universe_model(x):
    """One cluster or two, with different continuous latents."""
    p, spread = numpyro.param("p", 0.4), numpyro.param("spread", 2.0)
    if numpyro.sample("two", dist.Bernoulli(p), infer=STEERS) == 0:
        loc = numpyro.sample("loc", dist.Normal(0.0, spread))
        numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        return
    low, high = numpyro.sample("low", dist.Normal(-spread, 1.0)), numpyro.sample("high", dist.Normal(spread, 1.0))
    locs = jnp.stack([low, high])
    components = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), dist.Normal(locs, 1.0))
    numpyro.sample("x", components, obs=x)


def universe_guide(x):
    a, b = numpyro.param("a", 0.3), numpyro.param("b", 0.5)
    if numpyro.sample("two", dist.Bernoulli(logits=a * x), infer=STEERS) == 0:
        numpyro.sample("loc", dist.Normal(b * x, 0.8))
    else:
        low = numpyro.sample("low", dist.Normal(b * x - 2.0, 1.1))
        numpyro.sample("high", dist.Normal(b * low + a * x + 2.0, 1.2))  # depends on what was drawn before


def geometric_model(x):
    p = numpyro.param("p", 0.5)
    number = 0
    while numpyro.sample(f"heads_{number}", dist.Bernoulli(p), infer=STEERS) == 0:
        number += 1
    numpyro.sample("x", dist.Normal(float(number), 1.0), obs=x)


def geometric_guide(x):
    a = numpyro.param("a", -0.5)
    number = 0
    while numpyro.sample(f"heads_{number}", dist.Bernoulli(logits=a + 0.8 * number - 0.2 * x), infer=STEERS) == 0:
        number += 1


def kinds_model(x):
    """Branches differ in the kinds of sites, and in how many they have."""
    q, m = numpyro.param("q", jnp.array([0.2, -0.3, 0.1])), numpyro.param("m", 0.5)
    kind = int(numpyro.sample("kind", dist.Categorical(logits=q), infer=STEERS))
    loc = m
    if kind == 1:
        loc = numpyro.sample("rate", dist.Gamma(2.0, jnp.exp(m)))
    if kind == 2:
        counts = numpyro.sample("counts", dist.Poisson(jnp.exp(jnp.array([m, 0.1]))).to_event(1))
        share = numpyro.sample("share", dist.Beta(2.0, 2.0))
        loc = share * counts[0] + (1.0 - share) * counts[1]
    numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def kinds_guide(x):
    r, s = numpyro.param("r", jnp.array([0.1, 0.2, 0.3])), numpyro.param("s", 0.2)
    kind = int(numpyro.sample("kind", dist.Categorical(logits=r * x), infer=STEERS))
    if kind == 1:
        numpyro.sample("rate", dist.Gamma(2.0, jnp.exp(s)))
    if kind == 2:
        numpyro.sample("counts", dist.Poisson(jnp.exp(jnp.array([s, s]))).to_event(1))
        numpyro.sample("share", dist.Beta(1.5 + s, 2.0))


def nested_model(x):
    p, m = numpyro.param("p", 0.6), numpyro.param("m", jnp.array([0.0, 1.0, 2.0]))
    if numpyro.sample("outer", dist.Bernoulli(p), infer=STEERS):
        inner = int(numpyro.sample("inner", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])), infer=STEERS))
        loc = m[inner] + (numpyro.sample("shift", dist.Normal(0.0, 1.0)) if inner == 2 else 0.0)
    else:
        loc = numpyro.sample("loc", dist.Normal(m[0], 2.0))
    numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def nested_guide(x):
    a, c = numpyro.param("a", 0.2), numpyro.param("c", jnp.array([0.1, 0.2, 0.3]))
    if numpyro.sample("outer", dist.Bernoulli(logits=a * x), infer=STEERS):
        if numpyro.sample("inner", dist.Categorical(logits=c * x), infer=STEERS) == 2:
            numpyro.sample("shift", dist.Normal(a * x, 1.0))
    else:
        numpyro.sample("loc", dist.Normal(a * x, 2.0))


def grown(split, leaf, name="n", depth=0):
    """A tree with a latent value at each leaf, at most 8 of them; returns their sum."""
    if depth < 3 and numpyro.sample(f"split_{name}", split, infer=STEERS):
        return grown(split, leaf, name + "l", depth + 1) + grown(split, leaf, name + "r", depth + 1)
    return numpyro.sample(f"leaf_{name}", leaf)


def grammar_model(x):
    p, m = numpyro.param("p", 0.4), numpyro.param("m", 0.5)
    numpyro.sample("x", dist.Normal(grown(dist.Bernoulli(p), dist.Normal(m, 1.0)), 0.5), obs=x)


def grammar_guide(x):
    a, c = numpyro.param("a", 0.1), numpyro.param("c", 0.3)
    grown(dist.Bernoulli(logits=a * x - 0.5), dist.Normal(c * x, 1.0))


PROGRAMS = {
    "mixture": (mixture_model, mixture_guide, jnp.array([0.0, 45.0, 190.0])),
    "open universe": (universe_model, universe_guide, jnp.array([0.3, -2.5, 1.4])),
    "geometric": (geometric_model, geometric_guide, jnp.array([0.0, 2.0])),
    "kinds": (kinds_model, kinds_guide, jnp.array([0.5, 2.0, -0.4])),
    "nested": (nested_model, nested_guide, jnp.array([0.5, 2.0, -0.4])),
    "grammar": (grammar_model, grammar_guide, jnp.array([0.5, 3.0])),
}


def params_of(model, guide, x):
    """Initial ones, constrained."""
    state = rws_jax.make_step(model, guide, data_axes=0, num_particles=8).init(jax.random.key(3), x)
    return state.theta, state.phi


def losses_and_gradients(programs, params, x, num_particles, **options):
    """Of all three losses, and with respect to both programs' parameters."""

    def value_and_grads(loss, **options):
        evaluate = lambda theta, phi: loss(
            theta, phi, *seeded(*programs), x, num_particles=num_particles, data_axes=0, **options
        )
        return jax.value_and_grad(evaluate, argnums=(0, 1))(*params)

    wake = [value_and_grads(loss, **options) for loss in (rws_jax.wake_theta_loss, rws_jax.wake_phi_loss)]
    return *wake, value_and_grads(rws_jax.sleep_phi_loss, vectorize_particles=options.get("vectorize_particles", True))


@pytest.fixture
def compiles_all(monkeypatch):
    """The losses compile every path."""
    known = functools.cache(lambda programs, options: Branching(compile_after=0))
    monkeypatch.setattr(branching, "_known", known)
    return known


@pytest.mark.parametrize("options", [{}, {"defensive": 0.3}], ids=["wake and sleep", "defensive"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_paths_compute_what_unjitted_particles_do(name, options, compiles_all):
    *programs, x = PROGRAMS[name]
    params = params_of(*programs, x)
    found = losses_and_gradients(programs, params, x, 6, **options)
    expected = losses_and_gradients(programs, params, x, 6, vectorize_particles=False, **options)
    chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("compile_after", [0, 5, 10_000], ids=["all compiled", "some compiled", "none compiled"])
def test_steps_by_paths_are_unjitted_steps(compile_after):
    model, guide, x = PROGRAMS["nested"]
    options = {"num_particles": 4, "insomnia": 0.5, "data_axes": 0, "phi_steps": 2, "defensive": 0.2}
    optimizers = {"theta_optimizer": optax.adam(0.05), "phi_optimizer": optax.adam(0.03)}
    by_paths = rws_jax.make_step(model, guide, compile_after=compile_after, **options, **optimizers)
    unjitted = rws_jax.make_step(model, guide, vectorize_particles=False, **options, **optimizers)
    states = [rws.init(jax.random.key(1), x) for rws in (by_paths, unjitted)]
    chex.assert_trees_all_equal(states[0].theta | states[0].phi, states[1].theta | states[1].phi)
    for _ in range(2):
        (states[0], info), (states[1], expected) = by_paths.step(states[0], x), unjitted.step(states[1], x)
    chex.assert_trees_all_close(*(state._replace(rng_key=None) for state in states), rtol=1e-4, atol=1e-5)
    assert states[0].rng_key == states[1].rng_key
    counts = {name: getattr(info, name) for name in ("num_paths", "num_compiled", "num_unjitted")}
    chex.assert_trees_all_close(info._replace(**dict.fromkeys(counts)), expected, rtol=1e-4, atol=1e-5)
    assert (counts["num_compiled"] == 0) == (compile_after == 10_000)
    assert (counts["num_unjitted"] == 0) == (compile_after == 0)
    chex.assert_trees_all_close(by_paths.get_params(states[0], x), unjitted.get_params(states[1], x), rtol=1e-4)
