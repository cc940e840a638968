"""State that modules of flax.linen and flax.nnx change as they run: one for all particles, carried on by each step."""

import pickle

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from numpyro.contrib.module import flax_module, nnx_module
from numpyro.handlers import seed, substitute
from numpyro.infer import SVI

import rws_jax
from tests.checks.test_errors import check
from tests.execution.test_devices import NamedSharding, P, mesh_of

X = 2.0 + 3.0 * jax.random.normal(jax.random.key(0), (6, 4))
MOMENTUM = 0.9
pytestmark = pytest.mark.usefixtures("allow_rank_promotion")  # flax adds biases to batches


class Normalised(nn.Module):
    """Data to two numbers, normalised over the batch."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, momentum=MOMENTUM)(x)
        return nn.Dense(2)(x)


class NormalisedNnx(nnx.Module):
    def __init__(self, rate=0.0):
        self.norm = nnx.BatchNorm(4, momentum=MOMENTUM, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(rate, rngs=nnx.Rngs(1))
        self.dense = nnx.Linear(4, 2, rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.dense(self.dropout(self.norm(x)))


def linen():
    return lambda: flax_module("net", Normalised(), input_shape=(1, 4), mutable=["batch_stats"])


def flax_nnx(rate=0.0):
    module = NormalisedNnx(rate)
    module.train()
    return lambda: nnx_module("net", module)


def model(x):
    weight = numpyro.param("weight", 0.1 * jnp.arange(8.0).reshape(2, 4))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 2)), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)


def guide_of(library):
    net_of = library

    def guide(x):
        net = net_of()
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    return guide


def statistics_of(state):
    """Running mean and variance, in whichever library."""
    leaves = {jax.tree_util.keystr(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(state)}
    find = lambda name: next(leaf for key, leaf in leaves.items() if f"'{name}'" in key)
    return find("mean"), find("var")


def by_hand(batches, num_passes=1):
    mean, var = jnp.zeros(4), jnp.ones(4)
    for x in batches:
        for _ in range(num_passes):
            mean = MOMENTUM * mean + (1 - MOMENTUM) * x.mean(0)
            var = MOMENTUM * var + (1 - MOMENTUM) * x.var(0)
    return mean, var


def close(state, expected):
    chex.assert_trees_all_close(statistics_of(state.mutable_state), expected, rtol=1e-5, atol=1e-6)


# one state for all particles


WAYS = {
    "plain": {},
    "chunks": {"chunk_size": 2},
    "defensive": {"defensive": 0.2},
    "phi_steps": {"phi_steps": 3},
    "dreams": {"insomnia": 0.5, "simulated_data_to_args": lambda sim, x: ((sim["x"],), {})},
    "one_by_one": {"vectorize_particles": False},
}


@pytest.mark.parametrize(
    ("library", "way"),
    [pytest.param(linen, "plain"), pytest.param(flax_nnx, "plain")]
    + [pytest.param(library, way, marks=pytest.mark.slow) for library in (linen, flax_nnx) for way in list(WAYS)[1:]],
)
def test_running_statistics_are_those_of_a_plain_loop(library, way):
    """Of one pass over the data in each update, whatever the number of particles; dreams leave them alone."""
    batches = [X, X[::-1] - 1.0, 0.5 * X]
    rws = rws_jax.make_step(model, guide_of(library()), num_particles=4, **WAYS[way])
    state = rws.init(jax.random.key(0), X)
    close(state, (jnp.zeros(4), jnp.ones(4)))
    for x in batches:
        state, info = rws.step(state, x)
        assert bool(info.finite)
    close(state, by_hand(batches, WAYS[way].get("phi_steps", 1)))
    assert set(rws.get_params(state, X)) == {"weight", "net$params"}


@pytest.mark.slow
def test_losses_are_those_of_the_state_that_came_in():
    """Held against the losses by themselves, with the state fixed by a handler."""
    rws = rws_jax.make_step(model, guide_of(flax_nnx(0.5)), num_particles=4)
    state = rws.init(jax.random.key(0), X)
    state, _ = rws.step(state, X)
    params = rws.get_params(state, X)
    keys = jax.random.split(jax.random.split(jax.random.clone(state.rng_key))[1], 4)
    fixed = substitute(guide_of(flax_nnx(0.5)), data=state.mutable_state)
    programs = seed(model, keys[0]), seed(fixed, keys[1])
    new, info = rws.step(state, X)
    assert jnp.allclose(info.wake_theta_loss, rws_jax.wake_theta_loss(params, params, *programs, X, num_particles=4))
    assert not jnp.allclose(*(statistics_of(s.mutable_state)[0] for s in (new, state)))


def dropout_count(state):
    return int(state.mutable_state["net$state"]["state"]["dropout"]["rngs"]["count"])


@pytest.mark.slow
def test_counts_of_random_numbers_go_on_as_do_statistics():
    """In evaluation they stay, and draws of particles do not touch them."""
    counts = []
    for mode in ("train", "eval"):
        module = NormalisedNnx(0.5)
        getattr(module, mode)()
        rws = rws_jax.make_step(model, guide_of(lambda module=module: nnx_module("net", module)), num_particles=3)
        start = rws.init(jax.random.key(0), X)
        state, infos = rws_jax.fit(rws.step, start, 3, X, progress_bar=False)
        assert bool(infos.finite.all())
        counts.append(dropout_count(state))
    assert counts == [3, 0]
    close(state, (jnp.zeros(4), jnp.ones(4)))


@pytest.mark.slow
def test_a_plain_mutable_site_is_state_too_and_the_program_s_own_dict_stays_as_it_was():
    start = {"steps": jnp.zeros((), jnp.int32)}

    def counting(x):
        count = numpyro.primitives.mutable("count", start)
        count["steps"] = count["steps"] + 1
        model(x)

    rws = rws_jax.make_step(counting, plain_guide, num_particles=2, phi_steps=2)
    state = rws.init(jax.random.key(0), X)
    state, _ = jax.lax.scan(lambda s, _: rws.step(s, X), state, length=3)
    assert int(state.mutable_state["count"]["steps"]) == 6
    assert int(start["steps"]) == 0


# what leaves it alone


@pytest.mark.slow
def test_a_step_that_is_not_finite_leaves_it_as_it_was():
    rws = rws_jax.make_step(model, guide_of(flax_nnx(0.5)), num_particles=3, phi_steps=2)
    state, _ = rws.step(rws.init(jax.random.key(0), X), X)
    again = state._replace(rng_key=jax.random.clone(state.rng_key))
    after, info = rws.step(again, X.at[0, 0].set(jnp.nan))
    assert not bool(info.finite)
    chex.assert_trees_all_equal(statistics_of(after.mutable_state), statistics_of(state.mutable_state))
    assert dropout_count(after) == dropout_count(state) == 2
    after, info = rws.step(after, X)
    assert bool(info.finite)
    assert dropout_count(after) == 4


def test_dreams_see_it_and_leave_it_alone():
    """In pure sleep nothing runs on real data, so that it stays where it started."""

    def prior(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 2)), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(jnp.tile(z, 2), 1.0).to_event(1), obs=x)

    rws = rws_jax.make_step(prior, guide_of(linen()), num_particles=3, insomnia=0.0)
    state = rws.init(jax.random.key(0), X)
    after, info = rws.step(state, X)
    assert info.wake_theta_loss is None
    close(after, (jnp.zeros(4), jnp.ones(4)))
    assert not jnp.allclose(after.phi["net$params"]["Dense_0"]["bias"], 0.0)


# states that come and go


@pytest.mark.slow
def test_training_goes_on_from_a_saved_state_and_states_may_be_donated():
    library = flax_nnx(0.5)
    make = lambda: rws_jax.make_step(model, guide_of(library), num_particles=3)
    rws = make()
    state, _ = rws.step(rws.init(jax.random.key(0), X), X)
    saved = pickle.dumps(state)
    expected, _ = rws_jax.fit(rws.step, state, 2, X, progress_bar=False)
    step, state = jax.jit(make().step, donate_argnums=0), pickle.loads(saved)
    for _ in range(2):
        state, _ = step(state, X)
    chex.assert_trees_all_close(statistics_of(state.mutable_state), statistics_of(expected.mutable_state))
    assert dropout_count(state) == dropout_count(expected) == 3
    library()(X)  # the arrays of the module are its own


def test_a_state_without_it_is_refused_where_it_is_needed():
    """States of earlier versions have no such field: they are those of programs without mutable sites."""
    rws = rws_jax.make_step(model, guide_of(linen()))
    state = rws.init(jax.random.key(0), X)
    old = rws_jax.RWSState(*state[:6])
    assert old.mutable_state is None
    with pytest.raises(ValueError, match="of another model") as error:
        rws.step(old, X)
    check(error, ValueError, "mutable_state['net$state']")


@pytest.mark.slow
def test_seeds_can_be_mapped_over():
    rws = rws_jax.make_step(model, guide_of(linen()), num_particles=3)
    states = jax.vmap(lambda rng_key: rws.init(rng_key, X))(jax.random.split(jax.random.key(0), 2))
    states, _ = jax.vmap(rws.step, in_axes=(0, None))(states, X)
    close(jax.tree.map(lambda leaf: leaf[1], states), by_hand([X]))


@pytest.mark.slow
@pytest.mark.parametrize("library", [linen, flax_nnx])
def test_it_is_the_same_over_many_devices(library):
    mesh, x = mesh_of(2, 4), jnp.concatenate([X, 2.0 * X])
    options = {"particle_sharding": NamedSharding(mesh, P("particles")), "num_particles": 8}
    rws = rws_jax.make_step(model, guide_of(library()), **options)
    placed = jax.device_put(x, NamedSharding(mesh, P("data")))
    state, _ = rws_jax.fit(rws.step, rws.init(jax.random.key(0), placed), 2, placed, progress_bar=False)
    close(jax.device_get(state), by_hand([x, x]))


@pytest.mark.slow
@pytest.mark.parametrize("library", [linen, flax_nnx])
def test_svi_carries_it_too(library):
    """`SVI.init` has run the programs once before the first update."""
    svi = SVI(model, guide_of(library()), optax.adam(0.01), loss=rws_jax.ReweightedWakeSleep(num_particles=4))
    state = svi.init(jax.random.key(0), X)
    update = jax.jit(svi.update)
    for x in (X, 0.5 * X):
        state, loss = update(state, x)
    assert jnp.isfinite(loss)
    close(state, by_hand([X, X, 0.5 * X]))
    bad, _ = update(state, X.at[0, 0].set(jnp.nan))
    chex.assert_trees_all_equal(statistics_of(bad.mutable_state), statistics_of(state.mutable_state))
    result = svi.run(jax.random.key(1), 3, X, progress_bar=False)
    close(result.state, by_hand([X] * 4))


# what it costs


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"chunk_size": 8}, {"insomnia": 0.5}])
def test_it_costs_nothing(options):
    """The run of one particle for its state alone is merged with what all particles compute."""
    library, num_particles = flax_nnx(0.5), 32
    if "insomnia" in options:
        options = options | WAYS["dreams"]

    def cost(guide):
        rws = rws_jax.make_step(model, guide, num_particles=num_particles, **options)
        return rws.step.lower(rws.init(jax.random.key(0), X), X).compile()

    state = rws_jax.make_step(model, guide_of(library)).init(jax.random.key(0), X).mutable_state
    carried, fixed = cost(guide_of(library)), cost(substitute(guide_of(library), data=state))
    flops = [compiled.cost_analysis()["flops"] for compiled in (carried, fixed)]
    memory = [compiled.memory_analysis().temp_size_in_bytes for compiled in (carried, fixed)]
    assert flops[0] <= 1.01 * flops[1]
    assert memory[0] <= memory[1] + 512  # bytes; a copy for each particle would be 1,408


# what is refused


def decoder(x):
    """Normalises what particles have drawn."""
    net = flax_module("decoder", nn.BatchNorm(use_running_average=False), input_shape=(1, 2), mutable=["batch_stats"])
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 2)), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(jnp.tile(net(z), 2), 1.0).to_event(1), obs=x)


def growing(x):
    numpyro.primitives.mutable("all", {"rows": jnp.zeros((0, 4))})
    holder = numpyro.primitives.mutable("count", {"value": 0})
    holder["value"] = holder["value"] + 0.5
    model(x)


def plain_guide(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(x[:, :2] + numpyro.param("m", 0.0), 1.0).to_event(1))


def standard_guide(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 2)), 1.0).to_event(1))


def counted(program):
    def counting(x):
        numpyro.primitives.mutable("count", {"value": 0})
        program(x)

    return counting


def scanning(x):
    def body(carry, x):
        numpyro.primitives.mutable("count", {"value": 0})
        return carry, None

    numpyro.contrib.control_flow.scan(body, 0.0, jnp.arange(3.0))
    model(x)


def normalising_in_scan(x):
    net = flax_nnx()()
    _, loc = numpyro.contrib.control_flow.scan(lambda carry, row: (carry, net(row[None])[0]), 0.0, x)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


REFUSED = {
    "draws": (decoder, plain_guide, {}, ["'decoder$state' of the model depends on what particles draw", "LayerNorm"]),
    "draws, one by one": (decoder, plain_guide, {"vectorize_particles": False}, ["depends on what particles draw"]),
    "type": (growing, plain_guide, {}, ["'count' changes its shape or type", "['value'] int32[]", "float32[]"]),
    "both": (counted(model), counted(plain_guide), {}, ["['count'] occur in both"]),
    "scan": (scanning, plain_guide, {}, ["mutable site 'count' of the model is inside a scan or cond body"]),
    "called in scan": (model, normalising_in_scan, {}, ["the guide changes mutable site 'net$state' inside a scan"]),
    "defensive": (
        model, plain_guide, {"defensive": 0.2, "defensive_guide": counted(standard_guide)},
        ["the defensive guide has mutable state", "['count']"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_state_that_is_not_one_is_refused_by_init(name):
    model, guide, options, words = REFUSED[name]
    rws = rws_jax.make_step(model, guide, **options)
    with pytest.raises(ValueError, match="mutable") as error:
        rws.init(jax.random.key(0), X)
    check(error, ValueError, *words)


@pytest.mark.slow
def test_dependence_on_draws_is_found_where_no_value_is_known():
    rws = rws_jax.make_step(decoder, plain_guide)
    with pytest.raises(ValueError, match="mutable site") as error:
        jax.vmap(lambda rng_key: rws.init(rng_key, X))(jax.random.split(jax.random.key(0), 2))
    check(error, ValueError, "'decoder$state' of the model depends on what particles draw")


@pytest.mark.slow
def test_of_one_datum_there_are_counts_but_no_statistics():
    def model_of_one(x):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(jnp.tile(z, 2), 1.0).to_event(1), obs=x)

    def guide_of_one(x):
        z = nnx_module("net", module)(x[None])[0]
        numpyro.sample("z", dist.Normal(z, 1.0).to_event(1))

    module = NormalisedNnx()
    rws = rws_jax.make_step(model_of_one, guide_of_one, data_axes=0)
    with pytest.raises(ValueError, match="mutable site") as error:
        rws.init(jax.random.key(0), X)
    check(error, ValueError, "'net$state' of the guide depends on what particles draw, or on a single datum", "a plate")
    module.eval()
    close(rws.init(jax.random.key(0), X), (jnp.zeros(4), jnp.ones(4)))


def test_beside_branching_sites_it_is_refused():
    def branching(x):
        if numpyro.sample("z", dist.Bernoulli(0.5), infer={"branching": True}):
            numpyro.sample("y", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([4]).to_event(1), obs=x)

    def guide(x):
        if numpyro.sample("z", dist.Bernoulli(numpyro.param("p", 0.5)), infer={"branching": True}):
            numpyro.sample("y", dist.Normal(0.0, 1.0))

    rws = rws_jax.make_step(counted(branching), guide)
    with pytest.raises(ValueError, match="mutable site") as error:
        rws.init(jax.random.key(0), X[0])
    check(error, ValueError, "branching sites, and mutable sites ['count']")


def test_a_loss_by_itself_carries_no_state():
    programs = seed(model, jax.random.key(0)), seed(counted(plain_guide), jax.random.key(1))
    theta, phi = {"weight": jnp.zeros((2, 4))}, {"m": jnp.zeros(())}
    for loss in (rws_jax.wake_theta_loss, rws_jax.wake_phi_loss, rws_jax.sleep_phi_loss):
        with pytest.raises(ValueError, match="mutable site") as error:
            loss(theta, phi, *programs, X)
        hints = "make_step", "mutable_state=state.mutable_state", "numpyro.handlers.substitute(guide"
        check(error, ValueError, "the guide has mutable site 'count'", *hints)
