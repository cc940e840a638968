"""Programs that branch in Python, by paths: what un-jitted particles compute, compiled."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import rws_jax
from rws_jax.execution import by_paths
from rws_jax.execution.branching.compiled_path import CompiledPath
from rws_jax.execution.branching.path_cache import PathCache
from rws_jax.execution.branching.trace import BranchingValue
from rws_jax.training import blocks
from tests import models
from tests.checks.test_errors import check
from tests.core.test_support import enable_x64
from tests.oracles import seeded

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
BRANCHES = {"branching": True}
NUM_BRANCHES = 20


def mixture_model(x):
    logits = numpyro.param("logits", jnp.linspace(0.0, 2.0, NUM_BRANCHES))
    z = int(numpyro.sample("z", dist.Categorical(logits=logits), infer=BRANCHES))
    if z % 2:
        numpyro.sample("x", dist.Normal(10.0 * z, 5.0), obs=x)
    else:
        numpyro.sample("x", dist.Normal(10.0 * z, 4.0), obs=x)


def mixture_guide(x):
    slope, offset = numpyro.param("slope", jnp.linspace(-0.01, 0.01, NUM_BRANCHES)), numpyro.param("offset", 0.1)
    numpyro.sample("z", dist.Categorical(logits=slope * x + offset), infer=BRANCHES)


def universe_model(x):
    """One cluster or two, with different continuous latents."""
    p, spread = numpyro.param("p", 0.4), numpyro.param("spread", 2.0)
    if numpyro.sample("two", dist.Bernoulli(p), infer=BRANCHES) == 0:
        loc = numpyro.sample("loc", dist.Normal(0.0, spread))
        numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        return
    low, high = numpyro.sample("low", dist.Normal(-spread, 1.0)), numpyro.sample("high", dist.Normal(spread, 1.0))
    locs = jnp.stack([low, high])
    components = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), dist.Normal(locs, 1.0))
    numpyro.sample("x", components, obs=x)


def universe_guide(x):
    a, b = numpyro.param("a", 0.3), numpyro.param("b", 0.5)
    if numpyro.sample("two", dist.Bernoulli(logits=a * x), infer=BRANCHES) == 0:
        numpyro.sample("loc", dist.Normal(b * x, 0.8))
    else:
        low = numpyro.sample("low", dist.Normal(b * x - 2.0, 1.1))
        numpyro.sample("high", dist.Normal(b * low + a * x + 2.0, 1.2))  # depends on what was drawn before


def geometric_model(x):
    p = numpyro.param("p", 0.5)
    number = 0
    while numpyro.sample(f"heads_{number}", dist.Bernoulli(p), infer=BRANCHES) == 0:
        number += 1
    numpyro.sample("x", dist.Normal(float(number), 1.0), obs=x)


def geometric_guide(x):
    a = numpyro.param("a", -0.5)
    number = 0
    while numpyro.sample(f"heads_{number}", dist.Bernoulli(logits=a + 0.8 * number - 0.2 * x), infer=BRANCHES) == 0:
        number += 1


def kinds_model(x):
    """Branches differ in the kinds of sites, and in how many they have."""
    q, m = numpyro.param("q", jnp.array([0.2, -0.3, 0.1])), numpyro.param("m", 0.5)
    kind = int(numpyro.sample("kind", dist.Categorical(logits=q), infer=BRANCHES))
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
    kind = int(numpyro.sample("kind", dist.Categorical(logits=r * x), infer=BRANCHES))
    if kind == 1:
        numpyro.sample("rate", dist.Gamma(2.0, jnp.exp(s)))
    if kind == 2:
        numpyro.sample("counts", dist.Poisson(jnp.exp(jnp.array([s, s]))).to_event(1))
        numpyro.sample("share", dist.Beta(1.5 + s, 2.0))


def nested_model(x):
    p, m = numpyro.param("p", 0.6), numpyro.param("m", jnp.array([0.0, 1.0, 2.0]))
    if numpyro.sample("outer", dist.Bernoulli(p), infer=BRANCHES):
        inner = int(numpyro.sample("inner", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])), infer=BRANCHES))
        loc = m[inner] + (numpyro.sample("shift", dist.Normal(0.0, 1.0)) if inner == 2 else 0.0)
    else:
        loc = numpyro.sample("loc", dist.Normal(m[0], 2.0))
    numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def nested_guide(x):
    a, c = numpyro.param("a", 0.2), numpyro.param("c", jnp.array([0.1, 0.2, 0.3]))
    if numpyro.sample("outer", dist.Bernoulli(logits=a * x), infer=BRANCHES):
        if numpyro.sample("inner", dist.Categorical(logits=c * x), infer=BRANCHES) == 2:
            numpyro.sample("shift", dist.Normal(a * x, 1.0))
    else:
        numpyro.sample("loc", dist.Normal(a * x, 2.0))


def grown(split, leaf, name="n", depth=0):
    """A tree with a latent value at each leaf, at most 8 of them; returns their sum."""
    if depth < 3 and numpyro.sample(f"split_{name}", split, infer=BRANCHES):
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
    return state.plain[:2]


def losses_and_gradients(programs, params, x, num_particles, **options):
    """Of both wake losses and, unless there are options, which are not for dreams, of sleep; for both programs."""

    def value_and_grads(loss):
        evaluate = lambda theta, phi: loss(
            theta, phi, *seeded(*programs), x, num_particles=num_particles, data_axes=0, **options
        )
        return jax.value_and_grad(evaluate, argnums=(0, 1))(*params)

    asleep = [] if "defensive" in options else [rws_jax.sleep_phi_loss]
    return [value_and_grads(loss) for loss in (rws_jax.wake_theta_loss, rws_jax.wake_phi_loss, *asleep)]


@pytest.fixture
def compiles_all(monkeypatch):
    """The losses compile every path."""
    cache_of = functools.cache(lambda *fns: PathCache(compile_after=0))
    monkeypatch.setattr(by_paths, "_cache_of", cache_of)
    return cache_of


SLOW = [
    pytest.param(name, options, id=f"{name}, {'defensive' if options else 'wake and sleep'}", marks=pytest.mark.slow)
    for name in PROGRAMS
    for options in ({}, {"defensive": 0.3})
]


@pytest.mark.parametrize(("name", "options"), SLOW)
def test_paths_compute_what_unjitted_particles_do(name, options, compiles_all):
    *programs, x = PROGRAMS[name]
    params, x = params_of(*programs, x), x[:2]
    found = losses_and_gradients(programs, params, x, 4, **options)
    expected = losses_and_gradients(programs, params, x, 4, vectorize_particles=False, **options)
    chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.slow
def test_paths_keep_double_precision(compiles_all):
    *programs, x = PROGRAMS["nested"]
    with enable_x64(True):
        x = np.asarray(x[:2], np.float64)
        params = params_of(*programs, x)
        found = losses_and_gradients(programs, params, x, 4)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float64")}
        expected = losses_and_gradients(programs, params, x, 4, vectorize_particles=False)
        chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_steps_by_paths_are_unjitted_steps():
    """With all paths compiled, some of them, or none."""
    model, guide, x = *PROGRAMS["nested"][:2], jnp.array([0.5, 2.0])
    options = {"num_particles": 4, "insomnia": 0.5, "data_axes": 0, "phi_steps": 2, "defensive": 0.2, "max_paths": 1}
    options |= {"theta_optimizer": optax.adam(0.05), "phi_optimizer": optax.adam(0.03)}

    def train(**more):
        rws = rws_jax.make_step(model, guide, **options, **more)
        start = state = rws.init(jax.random.key(1), x)
        for _ in range(2):
            state, info = rws.step(state, x)
        return start, state, info, rws.get_params(state, x)

    expected_start, expected_state, expected_info, expected_params = train(vectorize_particles=False)
    for compile_after in (0, 5, 10_000):
        start, state, info, params = train(compile_after=compile_after)
        chex.assert_trees_all_equal(start.theta | start.phi, expected_start.theta | expected_start.phi)
        without_keys = [s._replace(rng_key=None) for s in (state, expected_state)]
        chex.assert_trees_all_close(*without_keys, rtol=1e-4, atol=1e-5)
        assert state.rng_key == expected_state.rng_key
        counts = {name: getattr(info, name) for name in ("num_paths", "num_compiled", "num_unjitted")}
        chex.assert_trees_all_close(info._replace(**dict.fromkeys(counts)), expected_info, rtol=1e-4, atol=1e-5)
        assert (counts["num_compiled"] == 0) == (compile_after == 10_000)
        assert (counts["num_unjitted"] == 0) == (compile_after == 0)
        chex.assert_trees_all_close(params, expected_params, rtol=1e-4)


# A small pair of programs for all else


def model(x):
    p = numpyro.param("p", 0.4)
    if numpyro.sample("z", dist.Bernoulli(p), infer=BRANCHES) == 1:
        numpyro.sample("x", dist.Normal(2.0, 1.0), obs=x)
    else:
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def guide(x):
    numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("a", 0.3) * x), infer=BRANCHES)


def in_plate(program, **options):
    """The same for all data at once, without branches."""

    def model(x):
        p = numpyro.param("p", 0.4)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(p), **options)
            numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("a", 0.3) * x), **options)

    return {"model": model, "guide": guide}[program]


X = jnp.array([-0.5, 0.4, 1.0, 2.2])
THETA, PHI = {"p": 0.4}, {"a": 0.3}


def make(model=model, guide=guide, **options):
    return rws_jax.make_step(
        model, guide, **{"data_axes": 0, "num_particles": 6, "compile_after": 0, "max_paths": 1, **options}
    )


def after(rws, num_steps, x=X):
    state = rws.init(jax.random.key(0), x)
    for _ in range(num_steps):
        state, info = rws.step(state, x)
    return state, info


def num_compilations(caplog):
    return sum("XLA compilation of jit(_function)" in message for message in caplog.messages)


@pytest.mark.slow
def test_a_step_by_paths_has_the_expectation_of_one_in_a_plate():
    """Values and gradients of programs of one datum, and of the same in a plate, within 5 standard errors."""
    options = {"num_particles": 3, "insomnia": 0.5, "theta_optimizer": optax.sgd(1.0), "phi_optimizer": optax.sgd(1.0)}
    in_plates = rws_jax.make_step(in_plate("model"), in_plate("guide"), **options)
    moves = []
    for rws in (make(**options), in_plates):
        start = rws.init(jax.random.key(0), X)
        after_one = [rws.step(start._replace(rng_key=jax.random.key(seed)), X) for seed in range(200)]
        moves.append(jnp.array([(s.theta["p"], s.phi["a"], i.wake_theta_loss, i.phi_loss) for s, i in after_one]))
    difference = moves[0].mean(axis=0) - moves[1].mean(axis=0)
    errors = jnp.sqrt((moves[0].var(axis=0) + moves[1].var(axis=0)) / 200)
    assert jnp.all(jnp.abs(difference) < 5.0 * errors)


def test_what_is_compiled_is_bounded_by_prefixes_and_sizes(caplog):
    rws = make(num_particles=5)
    state = rws.init(jax.random.key(0), X)
    with jax.log_compiles():
        for _ in range(30):
            state, info = rws.step(state, X)
            assert 1 <= info.num_paths <= 2
            assert info.num_unjitted == 0
    assert info.num_compiled == num_compilations(caplog)
    assert 3 <= info.num_compiled <= 3 * 2  # the root and two paths; 8 and 32 particles


@pytest.mark.slow
def test_rare_paths_are_run_unjitted_until_they_are_not():
    rws = make(num_particles=2, compile_after=20)
    state = rws.init(jax.random.key(0), X)
    state, info = rws.step(state, X)
    assert info.num_unjitted == 8
    assert info.num_compiled == 0
    for _ in range(5):
        state, info = rws.step(state, X)
    assert info.num_compiled > 0


@pytest.mark.floors
def test_the_last_recently_used_function_is_dropped():
    rws, bounded = make(), make(max_compiled=1)
    (state, _), (bounded_state, info) = after(rws, 2), after(bounded, 2)
    assert info.num_compiled == 1
    chex.assert_trees_all_close(state.theta, bounded_state.theta)


def test_paths_that_are_dropped_are_rare_again():
    rws = make(max_compiled=1, compile_after=1000)
    _, info = after(rws, 1)
    assert info.num_unjitted == 24


@pytest.mark.slow
def test_arguments_of_other_shapes_are_compiled_anew():
    """The number of branching sites is that of the observations."""

    def model_of_many(x):
        for number in range(len(x)):
            z = numpyro.sample(f"z{number}", dist.Bernoulli(numpyro.param("p", 0.4)), infer=BRANCHES)
            numpyro.sample(f"x{number}", dist.Normal(2.0 if z else 0.0, 1.0), obs=x[number])

    def guide_of_many(x):
        for number in range(len(x)):
            numpyro.sample(f"z{number}", dist.Bernoulli(logits=numpyro.param("a", 0.3) * x[number]), infer=BRANCHES)

    options = {"model": model_of_many, "guide": guide_of_many, "data_axes": None, "num_particles": 3}
    rws, unjitted = make(**options), make(**options, vectorize_particles=False)
    state = rws.init(jax.random.key(0), X[:1])
    for length in (1, 2, 1, 2):
        found, expected = rws.step(state, X[:length])[1], unjitted.step(state, X[:length])[1]
        chex.assert_trees_all_close(found.wake_theta_loss, expected.wake_theta_loss, rtol=1e-5)


@pytest.mark.parametrize("compile_after", [0, 10_000], ids=["compiled", "un-jitted"])
def test_parameters_are_arrays_to_programs_on_paths(compile_after, monkeypatch):
    def model(x):
        p = numpyro.param("p", 0.3)
        if numpyro.sample("z", dist.Bernoulli(p.astype(float)), infer=BRANCHES):  # as arrays can
            numpyro.sample("x", dist.Normal(1.0, 1.0), obs=x)
        else:
            numpyro.sample("x", dist.Normal(p, 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Bernoulli(0.5), infer=BRANCHES)

    monkeypatch.setattr(by_paths, "_cache_of", lambda *fns: PathCache(compile_after=compile_after))
    evaluate = lambda p: rws_jax.wake_theta_loss({"p": p}, {}, *seeded(model, guide), 0.5, num_particles=8)
    values = [evaluate(p) for p in (jnp.array(0.3), np.float32(0.3), 0.3)]
    chex.assert_trees_all_equal(values[0], *values[1:])


@pytest.mark.floors
def test_what_is_compiled_for_committed_parameters_is_compiled_once(caplog):
    rws = make()
    state = jax.device_put(rws.init(jax.random.key(0), X), jax.devices()[0])
    with jax.log_compiles():
        _, info = rws.step(state, X)
    assert info.num_paths == 2
    assert info.num_compiled == num_compilations(caplog)


def test_chunks_of_paths_are_the_same_numbers():
    (state, info), (chunked, chunked_info) = after(make(), 2), after(make(chunk_size=4), 2)
    chex.assert_trees_all_close((state.theta, state.phi), (chunked.theta, chunked.phi), rtol=1e-5)
    assert info.num_paths == chunked_info.num_paths


def test_an_interruption_while_a_path_is_compiled_loses_nothing(monkeypatch):
    rws = make()
    state = rws.init(jax.random.key(0), X)
    calls = []

    def interrupted(self, *args):
        calls.append(self.trace)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return called(self, *args)

    called = CompiledPath.__call__
    monkeypatch.setattr(CompiledPath, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rws.step(state, X)
    assert calls == [(), (BranchingValue("z", 0, "int32"),)]
    found, _ = rws.step(state, X)
    assert len(calls) == 2 + 1 + 4  # the root was kept; two paths forward and back
    expected, _ = make().step(state, X)
    chex.assert_trees_all_close(found.theta, expected.theta)


def test_a_site_may_branch_in_one_program_only():
    """Python branches in the model; the guide, which draws the site, is told to stop there."""

    def plain_guide(x):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("a", 0.3) * x))

    (found, _), (expected, _) = after(make(guide=plain_guide), 2), after(make(), 2)
    chex.assert_trees_all_close((found.theta, found.phi), (expected.theta, expected.phi))


@pytest.mark.parametrize("kind", models.rows(["step", "function", "loop"], fast=["step"]))
def test_fit_and_restored_states_run_by_paths(kind, monkeypatch):
    """Whether programs branch is known as they run: in a step, in a function around it, or in a loop."""
    monkeypatch.setattr(blocks, "LOOP_FROM", 1 if kind == "loop" else 5000)
    step_of = lambda rws: (lambda *args: rws.step(*args)) if kind == "function" else rws.step
    expected, _ = after(make(), 4)
    rws = make()
    options = {"progress_bar": False, "steps_per_block": 2}
    state, infos = rws_jax.fit(step_of(rws), rws.init(jax.random.key(0), X), 4, X, **options)
    assert infos.num_paths.shape == (4,)
    chex.assert_trees_all_close(state.theta, expected.theta)
    start = make().init(jax.random.key(0), X)
    restored, _ = rws_jax.fit(step_of(make()), start, 4, X, **options)  # nobody has told that programs branch
    chex.assert_trees_all_close(restored.theta, expected.theta)
    assert make().get_params(start, X).keys() == {"p", "a"}


def test_python_may_branch_on_dreamt_data():
    """A site named in `observed_sites` is drawn like a latent one, and Python may branch on it."""

    def model_of_data(x=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        if numpyro.sample("x", dist.Bernoulli(0.4), infer=BRANCHES) == 1:
            numpyro.sample("y", dist.Normal(z, 1.0))
        else:
            numpyro.sample("y", dist.Normal(0.0, 2.0))

    def guide_of_data(x=None, y=None):
        numpyro.sample("z", dist.Normal(numpyro.param("a", 0.3) * x * y, 1.0))

    options = {"num_particles": 40, "observed_sites": ("x", "y")}
    evaluate = lambda **more: jax.value_and_grad(
        lambda phi: rws_jax.sleep_phi_loss({}, phi, *seeded(model_of_data, guide_of_data), **options, **more)
    )({"a": jnp.array(0.3)})
    chex.assert_trees_all_close(evaluate(), evaluate(vectorize_particles=False), rtol=1e-5)


@pytest.mark.slow
def test_functions_without_hash_go_with_paths():
    @dataclasses.dataclass
    class Rewrite:
        scale: float

        def __call__(self, data, x):
            return (data["x"] * self.scale,), {}

    options = {"num_particles": 40, "data_axes": 0, "simulated_data_to_args": Rewrite(2.0)}
    evaluate = lambda **more: rws_jax.sleep_phi_loss(THETA, PHI, *seeded(model, guide), X, **options, **more)
    chex.assert_trees_all_close(evaluate(), evaluate(vectorize_particles=False), rtol=1e-5)
    rws = make(insomnia=0.0, simulated_data_to_args=Rewrite(2.0))
    state = rws.init(jax.random.key(0), X)
    counts = []
    for _ in range(3):
        state, info = rws.step(state, X)
        counts.append(int(info.num_compiled))
    assert counts[-1] <= 3 * 2  # the root and two paths; 8 and 32 dreams


# Bad input


def test_python_branches_on_annotated_sites_only():
    def plain_model(x):
        numpyro.sample("x", dist.Normal(0.0 if numpyro.sample("z", dist.Bernoulli(0.4)) else 1.0, 1.0), obs=x)

    def plain_guide(x):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("a", 0.3) * x))

    with pytest.raises(TypeError, match="Python branches on the value of site 'z'") as error:
        make(plain_model, plain_guide).init(jax.random.key(0), X)
    check(error, TypeError, "infer={'branching': True}", "control_flow.cond", "vectorize_particles=False")

    def model_of_two(x):
        model(x)
        numpyro.sample("y", dist.Normal(0.0 if numpyro.sample("w", dist.Bernoulli(0.5)) else 1.0, 1.0))

    def guide_of_two(x):
        guide(x)
        numpyro.sample("w", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(0.0, 1.0))

    with pytest.raises(TypeError, match="cannot be compiled") as error:
        after(make(model_of_two, guide_of_two), 1)
    check(error, TypeError, "the value of site 'w'", "on the path z=", "infer={'branching': True}")


@pytest.mark.slow
def test_branches_that_do_not_match_are_told_with_site_and_path():
    def model_of_more(x):
        if numpyro.sample("z", dist.Bernoulli(0.4), infer=BRANCHES):
            numpyro.sample("more", dist.Bernoulli(0.5), infer=BRANCHES)
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    for loss in (rws_jax.wake_phi_loss, rws_jax.sleep_phi_loss):
        with pytest.raises(ValueError, match="latent site 'more' of the model is missing from the guide") as error:
            loss(THETA, PHI, *seeded(model_of_more, guide), X, num_particles=30, data_axes=0)
        check(error, ValueError, "from the guide, on the path z=1")


def test_a_site_has_one_kind_of_values():
    def model_of_kinds(x):
        z = numpyro.sample("z", dist.Bernoulli(0.4), infer=BRANCHES)
        y = numpyro.sample("y", dist.Normal(0.0, 1.0) if z else dist.Gamma(1.0, 1.0))
        numpyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide_of_kinds(x):
        z = numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("a", 0.3) * x), infer=BRANCHES)
        numpyro.sample("y", dist.Normal(0.0, 1.0) if z else dist.Gamma(1.0, 1.0))

    with pytest.raises(ValueError, match="latent site 'y' of the guide has different supports") as error:
        after(make(model_of_kinds, guide_of_kinds), 1)
    check(error, ValueError, "a half-line, as on the path z=0", "the real line on the path z=1", "different names")


def test_a_program_that_is_not_deterministic_is_told():
    runs = []

    def fickle_guide(x):
        runs.append(x)
        for name in ("z", "y") if len(runs) % 2 else ("y", "z"):
            numpyro.sample(name, dist.Bernoulli(logits=numpyro.param(f"of_{name}", 0.3) * x), infer=BRANCHES)

    def model_of_both(x):
        numpyro.sample("y", dist.Bernoulli(0.5), infer=BRANCHES)
        model(x)

    with pytest.raises(ValueError, match="a program is not deterministic given its sites") as error:
        after(make(model_of_both, fickle_guide), 1)
    check(error, ValueError, "on the path", "'z'", "'y'")


@pytest.mark.slow
def test_a_branching_site_of_different_values_is_warned_of():
    def model_of_reals(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0), infer=BRANCHES)
        numpyro.sample("x", dist.Normal(1.0 if z > 0 else 0.0, 1.0), obs=x)

    def guide_of_reals(x):
        numpyro.sample("z", dist.Normal(numpyro.param("a", 0.1), 1.0), infer=BRANCHES)

    rws = make(model_of_reals, guide_of_reals, num_particles=15, compile_after=59)
    state = rws.init(jax.random.key(0), X)
    with pytest.warns(UserWarning, match="site 'z' has drawn 60 different values for 60 particles"):
        rws.step(state, X)


def model_without_annotation(x):
    numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Bernoulli(0.4)), 1.0), obs=x)


@pytest.mark.slow
def test_options_and_places_that_do_not_go_with_paths():
    annotated = in_plate("model", infer=BRANCHES), in_plate("guide", infer=BRANCHES)
    with pytest.raises(ValueError, match="branching site 'z' of the guide is in plate 'data'") as error:
        make(*annotated, data_axes=None).init(jax.random.key(0), X)
    check(error, ValueError, "data_axes=0")
    rws = make()
    state = rws.init(jax.random.key(0), X)
    with pytest.raises(TypeError, match="programs have branching sites, but the call is traced") as error:
        jax.jit(rws.step)(state, X)
    assert "rws_jax.fit" in str(error.value)
    with pytest.raises(ValueError, match="an option does not go with these") as error:
        rws_jax.wake_phi_loss(THETA, PHI, *seeded(model, guide), X, data_axes=0, gradient="dreg")
    check(error, ValueError, "gradient='score'")
    masked = [numpyro.handlers.mask(program, mask=True) for program in seeded(model, guide)]
    with pytest.raises(ValueError, match=r"handlers around numpyro\.handlers\.seed") as error:
        rws_jax.wake_phi_loss(THETA, PHI, *masked, X, data_axes=0)
    check(error, ValueError, "seed(handler(program), rng_key)")

    def subsampled(program):
        def of_some(x):
            with numpyro.plate("d", 3, subsample_size=1):
                program(x)

        return of_some

    with pytest.raises(ValueError, match="another minibatch of plate 'd'") as error:
        rws_jax.wake_phi_loss(
            THETA, PHI, *seeded(subsampled(model), subsampled(guide)), 0.3, num_particles=40, defensive=0.5
        )
    check(error, ValueError, "data_axes=0")
    plain = [subsampled(program) for program in (model, guide)]
    plain[0] = subsampled(model_without_annotation)
    with pytest.raises(ValueError, match="another minibatch of plate 'd'"):  # annotated in the guide alone
        rws_jax.wake_phi_loss(THETA, PHI, *seeded(*plain), 0.3, num_particles=40, defensive=0.5)
    for option, value in (("compile_after", -1), ("max_compiled", 0)):
        with pytest.raises(ValueError, match=f"option '{option}' is too small"):
            make(**{option: value})
