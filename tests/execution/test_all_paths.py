"""Programs that branch in Python, compiled as a whole: what un-jitted particles compute, in one executable."""

import contextlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

import rws_jax
from rws_jax.execution.branching import unrolled
from rws_jax.execution.branching.errors import BranchingSiteError
from rws_jax.training import blocks
from tests import models
from tests.checks.test_errors import check
from tests.core.test_support import enable_x64
from tests.execution.test_branching import BRANCHES, PROGRAMS, X, guide, model
from tests.execution.test_devices import mesh_of
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
    near = numpyro.sample("near", dist.Bernoulli(logits=a * x), infer={"is_auxiliary": True, "branching": True})
    if near:
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
    assert info.num_paths is not None
    assert info.num_compiled is info.num_unjitted is None
    unjitted = {name: value for name, value in options.items() if name != "chunk_size"}
    options = unjitted
    expected_start, expected_state, expected, expected_params = train(vectorize_particles=False)
    chex.assert_trees_all_equal(start.plain[:2], expected_start.plain[:2])
    chex.assert_trees_all_close(state, expected_state, rtol=2e-4, atol=1e-5)
    chex.assert_trees_all_close(info._replace(num_paths=None), expected, rtol=2e-4, atol=1e-5)
    chex.assert_trees_all_close(params, expected_params, rtol=2e-4)


@pytest.mark.slow
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
    targets = re.findall(r'custom_call_target="([^"]*)"', compiled_step(rws, X).as_text())
    assert not [target for target in targets if "callback" in target]
    rws = make(counted(model), counted(guide), insomnia=0.5, num_particles=3)
    state = rws.init(jax.random.key(0), X)
    runs.clear()
    with jax.log_compiles():
        for _ in range(3):
            state, info = rws.step(state, X)
    assert sum("XLA compilation of jit(step)" in message for message in caplog.messages) == 1
    assert info.num_compiled is None
    of_dreams, of_particles, num_paths = 3, 3, 2  # beginnings of paths: none, and each value
    assert runs.count(model) == of_dreams + num_paths
    assert runs.count(guide) == of_particles + num_paths + num_paths  # drawn, scored, and scored on dreams


def in_a_user_program(transform):
    """Losses of three steps; in a loop of Python, unless a transformation is named."""
    rws = make(insomnia=0.5, num_particles=3)
    start = rws.init(jax.random.key(0), X)
    if transform == "scan":
        state, infos = jax.lax.scan(lambda state, _: rws.step(state, X), start, length=3)
        return state.theta, infos.phi_loss[-1]
    if transform == "vmap":
        keys = jnp.stack([jax.random.key(7), start.rng_key])
        states = jax.vmap(lambda key: start.plain._replace(rng_key=key))(keys)
        for _ in range(3):
            states, infos = jax.jit(jax.vmap(rws.step, in_axes=(0, None)))(states, X)
        return jax.tree.map(lambda leaf: leaf[1], (states.theta, infos.phi_loss))
    if transform == "fit":
        assert rws.step.jittable
        state, infos = rws_jax.fit(rws.step, start, 3, X, progress_bar=False, steps_per_block=3)
        assert infos.num_compiled is None
        return state.theta, infos.phi_loss[-1]
    step = rws.step
    if transform == "export":
        exported = export.export(jax.jit(rws.step), platforms=["cpu", "cuda", "tpu"])(start.plain, X)
        step = exported.call
        start = start.plain
    if transform == "another process":
        step = make(insomnia=0.5, num_particles=3).step
    state = start
    for _ in range(3):
        state, info = step(state, X)
    return state.theta, info.phi_loss


TRANSFORMS = models.rows(["scan", "vmap", "fit", "export", "another process"], fast=["scan"])


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_step_is_what_it_is_for_other_programs(transform):
    expected, found = in_a_user_program(None), in_a_user_program(transform)
    plain = lambda result: (dict(result[0]), result[1])
    chex.assert_trees_all_close(plain(found), plain(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 4), (4, 2)])
def test_particles_and_data_are_divided_over_devices(shape):
    def train(mesh):
        x, options = jnp.tile(X, 2), {}
        if mesh is not None:
            x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
            options["particle_sharding"] = NamedSharding(mesh, PartitionSpec("particles"))
        rws = make(insomnia=0.5, num_particles=8, **options)
        state = rws.init(jax.random.key(0), x)
        for _ in range(2):
            state, info = rws.step(state, x)
        assert info.num_compiled is None
        return jax.device_get((state.plain[:2], info))

    chex.assert_trees_all_close(train(mesh_of(*shape)), train(None), rtol=1e-5, atol=1e-5)


# What goes by paths


def poisson_model(x):
    count = int(numpyro.sample("count", dist.Poisson(numpyro.param("rate", 0.7)), infer=BRANCHES))
    numpyro.sample("x", dist.Normal(float(count), 1.0), obs=x)


def poisson_guide(x):
    numpyro.sample("count", dist.Poisson(numpyro.param("q", 0.7)), infer=BRANCHES)


RARE = jnp.array([0.0, 0.0, 0.0, -20.0])  # the last one is not run by `init`


def four_model(x):
    """Its own mistake shows along one path alone."""
    z = int(numpyro.sample("z", dist.Categorical(logits=numpyro.param("l", RARE)), infer=BRANCHES))
    numpyro.sample("x", dist.Normal(float([0, 1, 2][z]), 1.0), obs=x)


def four_guide(x):
    numpyro.sample("z", dist.Categorical(logits=numpyro.param("q", RARE)), infer=BRANCHES)


def many_of(num):
    def program(x, draws_data):
        zs = [numpyro.sample(f"z_{i}", dist.Bernoulli(0.3), infer=BRANCHES) for i in range(num)]
        if draws_data:
            numpyro.sample("x", dist.Normal(sum(1.0 for z in zs if z) + numpyro.param("m", 0.0), 1.0), obs=x)

    return (lambda x: program(x, True)), (lambda x: program(x, False))


BY_PATHS = {
    "a loop without bound": (PROGRAMS["geometric"][:2], "more than 12 branching sites on the path heads_0=0"),
    "counts without bound": (
        (poisson_model, poisson_guide),
        "branching site 'count' has more than max_paths=64 values",
    ),
    "too many paths": (many_of(7), "more than max_paths=64 paths"),
    "an error along a path": ((four_model, four_guide), "list index out of range"),
}


@pytest.mark.parametrize("name", models.rows(BY_PATHS, fast=["counts without bound"]))
def test_what_cannot_be_compiled_as_a_whole_runs_by_paths(name):
    programs, reason = BY_PATHS[name]
    rws = make(*programs, num_particles=2)
    state = rws.init(jax.random.key(0), X[:2])
    with pytest.raises(TypeError, match="cannot be compiled as a whole") as error:
        jax.jit(rws.step)(state, X[:2])
    check(error, BranchingSiteError, reason, "with few paths in all", "rws_jax.fit")
    _, info = rws.step(state, X[:2])
    assert info.num_compiled is not None
    assert not rws.step.jittable


def test_paths_that_waste_much_work_go_by_paths(monkeypatch):
    """On a CPU, where there is a choice; here any work is too much."""
    monkeypatch.setattr(unrolled, "_MAX_RATIO", 1.0)
    monkeypatch.setattr(unrolled, "_MAX_WASTED", 0)
    rws, jitted = make(num_particles=2), make(num_particles=2)
    state = rws.init(jax.random.key(0), X)
    assert rws.step(state, X)[1].num_compiled is not None
    jitted.init(jax.random.key(0), X)
    assert jax.jit(jitted.step)(state, X)[1].num_compiled is None


@pytest.mark.parametrize("loop_from", [1, 5000], ids=["loop", "function"])
def test_fit_goes_by_paths_where_these_waste_less(loop_from, monkeypatch):
    monkeypatch.setattr(unrolled, "_MAX_RATIO", 1.0)
    monkeypatch.setattr(unrolled, "_MAX_WASTED", 0)
    monkeypatch.setattr(blocks, "LOOP_FROM", loop_from)
    rws = make(num_particles=2)
    step = rws.step if loop_from == 1 else lambda *args: rws.step(*args)
    state = rws.init(jax.random.key(0), X)
    _, infos = rws_jax.fit(step, state, 2, X, progress_bar=False, steps_per_block=2)
    assert infos.num_compiled is not None


@pytest.mark.parametrize("kind", ["step", "function", "loop"])
def test_an_error_along_a_path_is_warned_of_where_others_run(kind, monkeypatch):
    """By paths, it would show once a particle comes along."""
    monkeypatch.setattr(blocks, "LOOP_FROM", 1 if kind == "loop" else 5000)
    rws = make(four_model, four_guide, num_particles=2)
    state = rws.init(jax.random.key(0), X[:2])
    step = rws.step if kind == "loop" else lambda *args: rws.step(*args)
    fit = lambda: rws_jax.fit(step, state, 1, X[:2], progress_bar=False, steps_per_block=1)
    with pytest.warns(UserWarning, match="run by paths, as one of these fails: list index out of range"):
        rws.step(state, X[:2]) if kind == "step" else fit()


class OneBased(dist.CategoricalLogits):
    """Draws from 1 on, but enumerates from 0 on."""

    @property
    def support(self):
        return dist.constraints.integer_interval(1, self.logits.shape[-1])

    def sample(self, key, sample_shape=()):
        return super().sample(key, sample_shape) + 1

    def log_prob(self, value):
        return super().log_prob(value - 1)


def test_values_outside_of_the_support_are_not_enumerated():
    def one_based_model(x):
        z = numpyro.sample("z", OneBased(jnp.array([0.3, -0.2])), infer=BRANCHES)
        numpyro.sample("x", dist.Normal(2.0 if z == 2 else numpyro.param("p", 0.1), 1.0), obs=x)

    def one_based_guide(x):
        numpyro.sample("z", OneBased(numpyro.param("a", 0.3) * x * jnp.arange(2.0)), infer=BRANCHES)

    rws, unjitted = (make(one_based_model, one_based_guide, vectorize_particles=v) for v in (True, False))
    state = rws.init(jax.random.key(0), X)
    (found, info), (expected, _) = rws.step(state, X), unjitted.step(state, X)
    assert info.num_compiled is not None
    chex.assert_trees_all_close(found.plain[:2], expected.plain[:2], rtol=1e-4)


def test_paths_that_nobody_takes_are_not_counted():
    def sure_guide(x):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("a", -60.0)), infer=BRANCHES)

    rws = make(guide=sure_guide)
    _, info = rws.step(rws.init(jax.random.key(0), X), X)
    assert info.num_compiled is None
    assert info.num_paths == 1


def test_paths_that_are_never_taken_need_not_run():
    """A loop that is sure to end at its third round."""

    def program(x, draws_data):
        depth, stops = 0, 0
        while not stops:
            stops = numpyro.sample(f"stops_{depth}", dist.Bernoulli([0.9, 0.5, 1.0][depth]), infer=BRANCHES)
            depth += 1
        if draws_data:
            numpyro.sample("x", dist.Normal(numpyro.param("loc", 0.0), [1.0, 2.0, 3.0][depth - 1]), obs=x)

    rws = make(lambda x: program(x, True), lambda x: program(x, False))
    _, info = rws.step(rws.init(jax.random.key(0), X), X)
    assert info.num_compiled is None
    assert info.finite


def test_a_derivative_that_is_not_finite_on_a_path_not_taken_is_reported():
    """As within `lax.cond` under `vmap`; by paths, nobody runs along it."""

    def root_model(x):
        a = numpyro.param("a", 1.0)
        if numpyro.sample("z", dist.Bernoulli(jnp.where(x > 0, 0.5, 0.0)), infer=BRANCHES):
            numpyro.sample("x", dist.Normal(jnp.sqrt(a * jnp.maximum(x, 0.0)), 1.0), obs=x)
        else:
            numpyro.sample("x", dist.Normal(a, 1.0), obs=x)

    def root_guide(x):
        probs = jnp.where(x > 0, 0.5, 0.0)
        numpyro.sample("z", dist.Bernoulli(probs), infer=BRANCHES)

    for options, is_finite in (({}, False), ({"max_paths": 1}, True)):
        rws = make(root_model, root_guide, **options)
        state = rws.init(jax.random.key(0), X)
        start = dict(state.theta)
        after, info = rws.step(state, X)
        assert bool(info.finite) == is_finite
        assert bool(after.theta["a"] == start["a"]) != is_finite


# What could be different


def loss_of(model, guide, *, jitted, x=X, **options):
    theta, phi = make(model, guide).init(jax.random.key(0), x).plain[:2]
    options = {"num_particles": 5, "data_axes": 0, "vectorize_particles": jitted, **options}
    evaluate = lambda theta, phi: rws_jax.wake_phi_loss(theta, phi, *seeded(model, guide), x, **options)
    gradient = jax.value_and_grad(evaluate, argnums=(0, 1))
    return (jax.jit(gradient) if jitted else gradient)(theta, phi)


def gradients_of_two(first, second):
    """Python branches between two functions of what the guide has."""

    def two_model(x):
        if numpyro.sample("z", dist.Bernoulli(0.4), infer=BRANCHES):
            numpyro.sample("x", dist.Normal(1.0, 1.0), obs=x)
        else:
            numpyro.sample("y", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def two_guide(x):
        a = numpyro.param("a", 0.3)
        if numpyro.sample("z", dist.Bernoulli(0.5 + first(0.1 * a * x)), infer=BRANCHES):
            return
        numpyro.sample("y", dist.Normal(second(0.1 * a * x), 1.0))

    return two_model, two_guide


def clipped(factor):
    @jax.custom_jvp
    def function(x):
        return jnp.sin(x)

    function.defjvp(lambda primals, tangents: (jnp.sin(*primals), factor * tangents[0]))
    return function


def two_elements_model(x):
    """A branching site of two elements."""
    z = numpyro.sample("z", dist.Bernoulli(numpyro.param("p", jnp.array([0.3, 0.6]))), infer=BRANCHES)
    numpyro.sample("x", dist.Normal(1.0 if z[0] and not z[1] else 0.0, 1.0), obs=x)


def two_elements_guide(x):
    numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("a", jnp.array([0.3, 0.1])) * x), infer=BRANCHES)


def shifted_model(x):
    """Values that begin at two, and a count of them that Python computes with."""
    z = numpyro.sample("z", dist.DiscreteUniform(2, 4), infer=BRANCHES)
    total = sum(numpyro.sample(f"y_{i}", dist.Normal(numpyro.param("m", 0.2), 1.0)) for i in range(int(z)))
    numpyro.sample("x", dist.Normal(total, 1.0), obs=x)


def shifted_guide(x):
    z = numpyro.sample("z", dist.DiscreteUniform(2, 4), infer=BRANCHES)
    for i in range(int(z)):
        numpyro.sample(f"y_{i}", dist.Normal(numpyro.param("a", 0.1) * x, 1.0))


def binomial_model(x):
    z = numpyro.sample("z", dist.Binomial(3, numpyro.param("p", 0.4)), infer=BRANCHES)
    numpyro.sample("x", dist.Normal(jnp.arange(4.0)[z] if z % 2 else 0.0, 1.0), obs=x)


def binomial_guide(x):
    numpyro.sample("z", dist.Binomial(3, logits=numpyro.param("a", 0.4) * x), infer=BRANCHES)


DIFFERENT = {
    "one body and two derivatives": gradients_of_two(clipped(2.0), clipped(3.0)),
    "elements of a site": (two_elements_model, two_elements_guide),
    "values from two on": (shifted_model, shifted_guide),
    "binomial": (binomial_model, binomial_guide),
}


@pytest.mark.parametrize("name", models.rows(DIFFERENT, fast=["one body and two derivatives"]))
def test_what_could_be_different_is_not(name):
    found, expected = (loss_of(*DIFFERENT[name], jitted=jitted, x=X[:2]) for jitted in (True, False))
    chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=1e-5)


def test_a_value_outside_of_the_known_support_makes_a_step_that_is_not_finite():
    """No number is made up for it."""

    class Wrong(dist.CategoricalLogits):
        def enumerate_support(self, expand=True):
            return jnp.arange(1)

    def wrong_guide(x):
        numpyro.sample("z", Wrong(numpyro.param("l", jnp.zeros(2))), infer=BRANCHES)

    rws = make(guide=wrong_guide)
    state = rws.init(jax.random.key(0), X)
    _, info = rws.step(state, X)
    assert info.num_compiled is None
    assert not info.finite
