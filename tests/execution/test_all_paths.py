"""Programs that branch in Python, compiled as a whole: what un-jitted particles compute, in one executable."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import rws_jax
from tests.core.test_support import enable_x64
from tests.execution.test_branching import BRANCHES, PROGRAMS, X, guide, model
from tests.oracles import seeded

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")


def three_deep_model(x):
    p = numpyro.param("p", jnp.array([0.5, 0.6, 0.4]))
    loc = numpyro.param("m", 0.3)
    if numpyro.sample("a", dist.Bernoulli(p[0]), infer=BRANCHES):
        loc = loc + numpyro.sample("u", dist.Normal(0.0, 1.0))
        if numpyro.sample("b", dist.Bernoulli(p[1]), infer=BRANCHES):
            loc = loc * numpyro.sample("v", dist.Gamma(2.0, 1.0))
            if numpyro.sample("c", dist.Bernoulli(p[2]), infer=BRANCHES):
                loc = loc + numpyro.sample("w", dist.Normal(loc, 0.5))
    numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def three_deep_guide(x):
    s, t = numpyro.param("s", jnp.array([0.2, -0.3, 0.4])), numpyro.param("t", 0.1)
    if numpyro.sample("a", dist.Bernoulli(logits=s[0] * x), infer=BRANCHES):
        u = numpyro.sample("u", dist.Normal(t * x, 1.0))
        if numpyro.sample("b", dist.Bernoulli(logits=s[1] * x + u), infer=BRANCHES):
            v = numpyro.sample("v", dist.Gamma(1.5 + t, 1.0))
            if numpyro.sample("c", dist.Bernoulli(logits=s[2] * v), infer=BRANCHES):
                numpyro.sample("w", dist.Normal(t * u, 1.0))


def own_parameters_model(x):
    """A branch takes parameters of its own."""
    kind = int(numpyro.sample("kind", dist.Categorical(logits=numpyro.param("q", jnp.zeros(3))), infer=BRANCHES))
    loc = numpyro.param(f"loc_{kind}", float(kind))
    scale = numpyro.param("scale_1", 1.5, constraint=dist.constraints.positive) if kind == 1 else 1.0
    numpyro.sample("x", dist.Normal(loc, scale), obs=x)


def own_parameters_guide(x):
    numpyro.sample("kind", dist.Categorical(logits=numpyro.param("r", jnp.array([0.1, 0.2, 0.3])) * x), infer=BRANCHES)


def auxiliary_model(x):
    z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.2), 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def auxiliary_guide(x):
    """A choice of the guide's alone: a mixture of two, one of them fixed."""
    a = numpyro.param("a", 0.3)
    choice = dist.Bernoulli(logits=a * x)
    if numpyro.sample("near", choice, infer={"is_auxiliary": True, "branching": True}):
        numpyro.sample("z", dist.Normal(a * x, 0.8))
    else:
        numpyro.sample("z", dist.Normal(0.0, 2.0))


WHOLE = {name: programs for name, programs in PROGRAMS.items() if name != "geometric"} | {
    "three deep": (three_deep_model, three_deep_guide, jnp.array([0.5, -2.0, 3.0])),
    "own parameters": (own_parameters_model, own_parameters_guide, jnp.array([0.5, -2.0, 3.0])),
    "auxiliary": (auxiliary_model, auxiliary_guide, jnp.array([0.5, -2.0, 3.0])),
}
of_auxiliary = pytest.mark.filterwarnings("ignore:auxiliary site:UserWarning")


def make(model=model, guide=guide, **options):
    return rws_jax.make_step(model, guide, **{"data_axes": 0, "num_particles": 6, **options})


def losses_and_gradients(programs, params, x, *, jitted, **options):
    """Of the wake losses and, where the guide has nothing that dreams lack, of sleep; for both programs."""
    wrap = jax.jit if jitted else lambda function: function
    options = {"num_particles": 4, "data_axes": 0, "vectorize_particles": jitted, **options}

    def value_and_grads(loss):
        evaluate = lambda theta, phi, x: loss(theta, phi, *seeded(*programs), x, **options)
        return wrap(jax.value_and_grad(evaluate, argnums=(0, 1)))(*params, x)

    has_dreams = "defensive" not in options and programs[1] is not auxiliary_guide
    asleep = [rws_jax.sleep_phi_loss] if has_dreams else []
    return [value_and_grads(loss) for loss in (rws_jax.wake_theta_loss, rws_jax.wake_phi_loss, *asleep)]


def params_of(programs, x):
    return make(*programs).init(jax.random.key(3), x).plain[:2]


SLOW = [
    pytest.param(name, options, id=f"{name}, {'defensive' if options else 'wake and sleep'}", marks=pytest.mark.slow)
    for name in WHOLE
    for options in ({}, {"defensive": 0.3})
    if not (options and name == "auxiliary")  # the prior draws no auxiliary sites
]


@of_auxiliary
@pytest.mark.parametrize(("name", "options"), SLOW)
def test_a_jitted_loss_and_its_gradient_are_those_of_unjitted_particles(name, options):
    *programs, x = WHOLE[name]
    x = x[:2]
    params = params_of(programs, x)
    found = losses_and_gradients(programs, params, x, jitted=True, **options)
    expected = losses_and_gradients(programs, params, x, jitted=False, **options)
    chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=1e-5)


@of_auxiliary
@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_double_precision_is_kept(name):
    *programs, x = WHOLE[name]
    with enable_x64(True):
        x = np.asarray(x[:2], np.float64)
        params = params_of(programs, x)
        found = losses_and_gradients(programs, params, x, jitted=True)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float64")}
        expected = losses_and_gradients(programs, params, x, jitted=False)
        chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-10)


STEPS = {
    "mixed": {"insomnia": 0.5},
    "mixed, defensive, updates of the guide": {"insomnia": 0.5, "defensive": 0.3, "phi_steps": 2},
    "chunks": {"chunk_size": 4, "insomnia": 0.5},
    "asleep": {"insomnia": 0.0},
}


@of_auxiliary
@pytest.mark.slow
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", ["nested", "kinds", "own parameters", "three deep"])
def test_a_step_compiled_as_a_whole_is_an_unjitted_one(name, kind):
    *programs, x = WHOLE[name]
    options = {"theta_optimizer": optax.adam(0.05), "phi_optimizer": optax.adam(0.03), **STEPS[kind]}

    def train(**more):
        rws = make(*programs, **options, **more)
        start = state = rws.init(jax.random.key(1), x[:2])
        for _ in range(2):
            state, info = rws.step(state, x[:2])
        return start, state._replace(rng_key=jax.random.key_data(state.rng_key)), info, rws.get_params(state, x[:2])

    (start, state, info, params), expected = train(), None
    assert info.num_paths >= 1
    assert info.num_compiled is info.num_unjitted is None
    unjitted = {name: value for name, value in options.items() if name != "chunk_size"}
    options = unjitted
    expected_start, expected_state, expected, expected_params = train(vectorize_particles=False)
    chex.assert_trees_all_equal(start.plain[:2], expected_start.plain[:2])
    chex.assert_trees_all_close(state, expected_state, rtol=2e-4, atol=1e-5)
    chex.assert_trees_all_close(info._replace(num_paths=None), expected, rtol=2e-4, atol=1e-5)
    chex.assert_trees_all_close(params, expected_params, rtol=2e-4)


def test_a_small_step_compiled_as_a_whole_is_one_by_paths():
    """The same numbers and the same count of paths."""
    options = {"insomnia": 0.5, "num_particles": 3}
    whole, by_paths = make(**options), make(**options, max_paths=1, compile_after=10_000)
    state = whole.init(jax.random.key(0), X)
    found, expected = whole.step(state, X), by_paths.step(state, X)
    counts = dict.fromkeys(("num_compiled", "num_unjitted"))
    assert found[1].num_compiled is None
    assert expected[1].num_compiled is not None
    without_keys = [(s._replace(rng_key=0), i._replace(**counts)) for s, i in (found, expected)]
    chex.assert_trees_all_close(*without_keys, rtol=1e-5, atol=1e-6)


@of_auxiliary
@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_steps_of_these_programs_are_compiled_as_a_whole(name):
    """Otherwise the tables would compare other things."""
    *programs, x = WHOLE[name]
    rws = make(*programs, num_particles=4)
    _, info = rws.step(rws.init(jax.random.key(0), x), x)
    assert info.num_compiled is info.num_unjitted is None
    assert info.finite


def test_one_program_may_be_annotated():
    """The model alone, where Python branches, or the guide alone, which draws."""

    def plain_guide(x):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("a", 0.3) * x))

    def plain_model(x):
        z = numpyro.sample("z", dist.Bernoulli(numpyro.param("p", 0.4)))
        numpyro.sample("x", dist.Normal(2.0 if z == 1 else 0.0, 1.0), obs=x)

    def after_one(*programs):
        rws = make(*programs, insomnia=0.5, num_particles=3)
        state, info = rws.step(rws.init(jax.random.key(0), X), X)
        assert info.num_compiled is None
        return state._replace(rng_key=None), info

    expected = after_one(model, guide)
    for programs in ((model, plain_guide), (plain_model, guide)):
        chex.assert_trees_all_close(after_one(*programs), expected, rtol=1e-6)


# What is compiled


def mixture(num, hidden, activation, *, branches):
    """A mixture of so many, whose guide is a network; Python branches in the model, or there is a plate."""
    weights = [0.1 * jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(8, hidden), (hidden, num)])]
    plate = (lambda x: contextlib.nullcontext()) if branches else (lambda x: numpyro.plate("data", len(x)))
    infer = BRANCHES if branches else {}

    def model(x):
        logits = numpyro.param("logits", jnp.zeros(num))
        with plate(x):
            z = numpyro.sample("z", dist.Categorical(logits=logits), infer=infer)
            scale = (5.0 if int(z) % 2 else 4.0) if branches else jnp.where(z % 2 == 1, 5.0, 4.0)[..., None]
            loc = jnp.asarray(z, float) if branches else jnp.asarray(z, float)[..., None]
            numpyro.sample("x", dist.Normal(10.0 * loc, scale).expand((*loc.shape[:-1], 8)).to_event(1), obs=x)

    def guide(x):
        first, second = (numpyro.param(f"w_{i}", weight) for i, weight in enumerate(weights))
        with plate(x):
            numpyro.sample("z", dist.Categorical(logits=activation(x @ first) @ second), infer=infer)

    return model, guide


def compiled_step(rws, *args):
    return jax.jit(rws.step).lower(rws.init(jax.random.key(0), *args), *args).compile()


def primitives_of(jaxpr):
    """The names of all operations, those within others too."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for param in jax.tree.leaves(eqn.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")):
            if hasattr(param, "eqns") or hasattr(param, "jaxpr"):
                yield from primitives_of(getattr(param, "jaxpr", param))


@pytest.mark.parametrize("activation", models.rows(["tanh", "relu"], fast=["relu"]))
def test_what_paths_share_is_computed_and_differentiated_once(activation):
    """Twenty branches after one network, against the same in a plate: the operations of three of these at most."""
    network = jnp.tanh if activation == "tanh" else jax.nn.relu
    x = jnp.ones((10, 8))
    flops = {
        branches: compiled_step(
            make(*mixture(20, 64, network, branches=branches), num_particles=5, data_axes=0 if branches else None), x
        ).cost_analysis()["flops"]
        for branches in (True, False)
    }
    assert flops[True] <= 3.0 * flops[False]


def test_a_step_is_one_executable_without_callbacks(caplog):
    """And programs are traced once for each beginning of a path, by each of wake and sleep, and never again."""
    runs = []

    def counted(program):
        def run(x):
            runs.append(program)
            program(x)

        return run

    rws = make(counted(model), counted(guide), insomnia=0.5, num_particles=3)
    state = rws.init(jax.random.key(0), X)
    names = set(primitives_of(jax.make_jaxpr(rws.step)(state, X).jaxpr))
    assert "random_bits" in names
    assert not [name for name in names if "callback" in name]
    assert "callback" not in compiled_step(rws, X).as_text()
    runs.clear()
    again = make(counted(model), counted(guide), insomnia=0.5, num_particles=3)
    state = again.init(jax.random.key(0), X)
    runs.clear()
    with jax.log_compiles():
        for _ in range(3):
            state, info = again.step(state, X)
    assert sum("XLA compilation of jit(step)" in message for message in caplog.messages) == 1
    assert info.num_compiled is None
    num_prefixes = 1 + 2
    assert len(runs) <= 3 * num_prefixes * 2
