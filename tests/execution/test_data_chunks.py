"""Data in chunks: the same results in one pass over each chunk, in the memory of one, whatever is made of them."""

import re

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpyro.contrib.control_flow import scan

import rws_jax
from tests.checks.test_errors import check
from tests.core.test_support import enable_x64
from tests.estimates import DELTA
from tests.oracles import seeded

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
X, SCALE = jnp.linspace(-1.0, 2.0, 11), jnp.array(0.8)
THETA, PHI = {"m": 0.3, "s": 1.2}, {"a": 0.5, "c": 0.1}
HOW = {"num_particles": 4, "data_axes": (0, None)}


def model(x, scale):
    z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.3), 1.0))
    b = numpyro.sample("b", dist.Bernoulli(0.4))
    numpyro.sample("x", dist.Normal(z + b, scale * numpyro.param("s", 1.2)), obs=x)


def guide(x, scale):
    z = numpyro.sample("z", dist.Normal(numpyro.param("a", 0.5) * x, scale))
    numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("c", 0.1) * z + x))


def smooth_model(x, scale):
    z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.3), 1.0))
    numpyro.sample("x", dist.Normal(z, scale * numpyro.param("s", 1.2)), obs=x)


def smooth_guide(x, scale):
    numpyro.sample("z", dist.Normal(numpyro.param("a", 0.5) * x + numpyro.param("c", 0.1), scale))


LOSSES = {
    "theta": (rws_jax.wake_theta_loss, {}),
    "phi": (rws_jax.wake_phi_loss, {}),
    "phi, plain": (rws_jax.wake_phi_loss, {"control_variate": False}),
    "phi, defensive": (rws_jax.wake_phi_loss, {"defensive": DELTA}),
    "phi, vimco": (rws_jax.wake_phi_loss, {"gradient": "vimco"}),
    "phi, dreg": (rws_jax.wake_phi_loss, {"gradient": "dreg"}),
    "sleep": (rws_jax.sleep_phi_loss, {}),
}


def losses_and_gradients(name, sizes, **options):
    """With respect to the parameters of both programs, in 64 bits; in one compilation."""
    loss, own = LOSSES[name]
    programs = (smooth_model, smooth_guide) if name == "phi, dreg" else (model, guide)

    def of(size):
        how = HOW | own | options | {"data_chunk_size": size}
        value = lambda theta, phi: loss(theta, phi, *seeded(*programs), X.astype(float), SCALE, **how)
        return jax.value_and_grad(value, argnums=(0, 1))(*jax.tree.map(jnp.array, (THETA, PHI)))

    with enable_x64(True):
        return jax.device_get(jax.jit(lambda: [of(size) for size in sizes])())


slow = lambda *names: [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", ["phi, defensive", *slow(*(name for name in LOSSES if name != "phi, defensive"))])
def test_losses_and_gradients_do_not_depend_on_the_size_of_chunks(name):
    """Three chunks of 3 and one of 2."""
    expected, found = losses_and_gradients(name, (None, 3))
    assert any(abs(leaf) > 0.1 for leaf in jax.tree.leaves(expected[1]))
    chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_chunks_of_one_datum_and_of_particles_too():
    expected, *found = losses_and_gradients("phi, defensive", (None, 1, 5, 11), chunk_size=3)
    for one in found:
        chex.assert_trees_all_close(one, expected, rtol=1e-12, atol=1e-12)


def stepped(size, x=X, programs=(model, guide), num=2, **options):
    """States and infos after some steps, as numbers; keys aside."""
    optimizers = {"theta_optimizer": optax.sgd(0.01), "phi_optimizer": optax.sgd(0.01)}
    rws = rws_jax.make_step(*programs, data_chunk_size=size, **(HOW | optimizers | options))
    args = (x, SCALE) if programs[0] in (model, smooth_model) else (x,)
    state = rws.init(jax.random.key(0), *args)
    for _ in range(num):
        state, info = rws.step(state, *args)
    return state._replace(rng_key=None), info


OPTIONS = {
    "mixed": {"insomnia": 0.3, "num_sleep_particles": 3},
    "sleep": {"insomnia": 0.0},
    "several updates of the guide": {"phi_steps": 2, "insomnia": 0.5},
    "shared parameters": {"shared_params": True},
}


@pytest.mark.parametrize("name", [*slow("mixed", "sleep", "several updates of the guide", "shared parameters")])
def test_steps_and_infos_do_not_depend_on_the_size_of_chunks(name):
    chex.assert_trees_all_close(stepped(4, **OPTIONS[name]), stepped(None, **OPTIONS[name]), rtol=2e-5, atol=2e-6)


@pytest.mark.floors
def test_a_chunk_of_dead_data_trains_nothing_and_is_counted():
    """All data of the first of three chunks are dead, whose bound would be infinite by itself."""
    x = jnp.array([0.3, 0.2, 0.1, 0.3, 0.4, 0.1]).at[jnp.array([0, 3])].set(90.0)

    def bounded(x):
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z + numpyro.param("m", 0.0), 1.0), obs=x)

    def wide(x):
        numpyro.sample("z", dist.Normal(numpyro.param("a", 1.0) * x, 1.0))

    how = {"programs": (bounded, wide), "data_axes": 0, "num": 1}
    found, expected = stepped(2, x, **how), stepped(None, x, **how)
    assert int(found[1].num_dead_units) == 2
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    _, info = stepped(2, x[:4] * 0.0 + 90.0, **how)
    assert info.wake_theta_loss == jnp.inf


def sequence_model(x):
    m = numpyro.param("m", 0.9)

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(m * z, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
        return z, None

    scan(step, 0.0, x)


def sequence_guide(x):
    a = numpyro.param("a", 0.5)
    scan(lambda h, x: (numpyro.sample("z", dist.Normal(a * x, 0.8)), None), 0.0, x)


def plate_model(x):
    g = numpyro.sample("g", dist.Normal(numpyro.param("m", 0.3), 1.0))
    with numpyro.plate("inner", len(x)):
        z = numpyro.sample("z", dist.Normal(g, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def plate_guide(x):
    g = numpyro.sample("g", dist.Normal(numpyro.param("a", 0.5) * x.mean(), 1.0))
    with numpyro.plate("inner", len(x)):
        numpyro.sample("z", dist.Normal(0.5 * (g + x), 0.8))


def branching_model(x):
    if numpyro.sample("b", dist.Bernoulli(numpyro.param("p", 0.4)), infer={"branching": True}):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 1.0), 1.0))
    numpyro.sample("x", dist.Normal(1.0, 1.0), obs=x)


def branching_guide(x):
    if numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("a", 0.5) * x), infer={"branching": True}):
        numpyro.sample("z", dist.Normal(x, 1.0))


def counting_model(x):
    count = numpyro.primitives.mutable("count", {"runs": jnp.zeros(())})
    count["runs"] = count["runs"] + 1.0
    z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.3) / count["runs"], 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def counting_guide(x):
    numpyro.sample("z", dist.Normal(numpyro.param("a", 0.5) * x, 1.0))


SERIES = jnp.linspace(-1.0, 1.5, 20).reshape(5, 4)
PROGRAMS = {
    "resampled": ((sequence_model, sequence_guide), SERIES, {"resample": "systematic", "resample_below": 0.9}),
    "nested": ((plate_model, plate_guide), SERIES, {"num_local_particles": 3}),
    "branching": ((branching_model, branching_guide), X[:3], {"num_particles": 2, "num": 1}),
    "state": ((counting_model, counting_guide), X, {}),
}


@pytest.mark.parametrize("name", [*slow("resampled", "nested", "branching", "state")])
def test_all_kinds_of_programs_run_in_chunks(name):
    programs, x, options = PROGRAMS[name]
    how = {"programs": programs, "data_axes": 0} | options
    chex.assert_trees_all_close(stepped(2, x, **how), stepped(None, x, **how), rtol=2e-5, atol=2e-6)


# What it costs


def network(size=64):
    """Programs of one datum, of matrices, and how often the model has been traced."""
    count = []

    def model(x):
        count.append(1)
        h = numpyro.sample("h", dist.Bernoulli(logits=numpyro.param("prior", jnp.zeros(size))).to_event(1))
        numpyro.sample("x", dist.Normal(h @ numpyro.param("w", jnp.eye(size)), 1.0).to_event(1), obs=x)

    def guide(x):
        numpyro.sample("h", dist.Bernoulli(logits=x @ numpyro.param("v", jnp.eye(size))).to_event(1))

    return model, guide, count


def compiled(num_data, size, insomnia=1.0):
    """A step of a network, and how often its model was traced for it."""
    *programs, count = network()
    x = jnp.ones((num_data, 64))
    rws = rws_jax.make_step(*programs, num_particles=10, data_axes=0, data_chunk_size=size, insomnia=insomnia)
    state = rws.init(jax.random.key(0), x)
    count.clear()
    return rws.step.lower(state, x).compile(), len(count)


def test_each_particle_is_run_once_and_memory_is_that_of_one_chunk():
    """XLA counts the body of a loop once: operations are those of one chunk, and a few for what is around it."""
    (at_once, of_all), (few, of_few), (many, of_many) = compiled(64, None), compiled(64, 16), compiled(512, 16)
    flops = lambda step: step.cost_analysis()["flops"]
    temporary = lambda step: step.memory_analysis().temp_size_in_bytes
    assert 0.95 < 4.0 * flops(few) / flops(at_once) < 1.1
    assert flops(many) < 1.01 * flops(few)
    assert of_all == of_few == of_many
    assert temporary(few) < 0.35 * temporary(at_once)
    # Of each datum more: four numbers that are reported, and its row once more.
    assert temporary(many) - temporary(few) <= (512 - 64) * (2 * 64 + 8) * 4


@pytest.mark.slow
def test_chunks_take_rows_of_all_devices_and_gather_nothing():
    x = jnp.tile(X[:8], 8)
    spread = jax.device_put(x, NamedSharding(jax.make_mesh((8,), ("d",), (AxisType.Auto,)), PartitionSpec("d")))
    chex.assert_trees_all_close(stepped(16, spread), stepped(None, x), rtol=2e-5, atol=1e-5)
    rws = rws_jax.make_step(model, guide, data_chunk_size=16, **HOW)
    text = rws.step.lower(rws.init(jax.random.key(0), spread, SCALE), spread, SCALE).compile().as_text()
    assert "all-reduce" in text
    assert not re.search("all-gather|all-to-all|collective-permute", text)


@pytest.mark.slow
def test_particles_may_be_spread_over_devices():
    sharding = NamedSharding(jax.make_mesh((4,), ("p",)), PartitionSpec("p"))
    found, expected = stepped(4, particle_sharding=sharding), stepped(None)
    chex.assert_trees_all_close(jax.device_get(found), jax.device_get(expected), rtol=2e-5, atol=2e-6)


# As a function of JAX


def phi_loss(size, phi, x=X, closed_over=0.0):
    moved = lambda x, scale: model(x + closed_over, scale)
    return rws_jax.wake_phi_loss(
        jax.tree.map(jnp.array, THETA), phi, *seeded(moved, guide), x, SCALE, data_chunk_size=size, **HOW
    )


# How the loss is differentiated: what it is given is traced by then, and with respect to what.
WAYS = {
    "jit inside": lambda loss: jax.grad(jax.jit(loss)),
    "jit outside": lambda loss: jax.jit(jax.grad(loss)),
    "checkpoint": lambda loss: jax.grad(jax.checkpoint(loss)),
    "cond": lambda loss: jax.jit(jax.grad(lambda p: jax.lax.cond(p["a"] > -9.0, loss, lambda p: 0.0, p))),
    "scan": lambda loss: jax.grad(lambda p: jax.lax.map(lambda x: loss(p, x=x), jnp.stack([X, 2.0 * X])).sum()),
    "vmap": lambda loss: lambda p: jax.vmap(jax.grad(lambda a: loss(p | {"a": a})))(jnp.array([0.5, 0.7])),
    "an argument": lambda loss: lambda p: jax.grad(lambda x: loss(p, x=x))(X),
    "second derivatives": lambda loss: jax.jit(jax.jacrev(jax.jacrev(loss))),
}


@pytest.mark.parametrize("way", ["jit inside", *slow(*(way for way in WAYS if way != "jit inside"))])
def test_chunks_are_differentiated_like_any_function(way):
    phi = jax.tree.map(jnp.array, PHI)
    differentiate = lambda size: WAYS[way](lambda p, **kwargs: phi_loss(size, p, **kwargs))
    chex.assert_trees_all_close(differentiate(4)(phi), jax.jit(differentiate(None))(phi), rtol=1e-4, atol=1e-5)


def test_so_is_what_programs_close_over():
    """A model's number, by wake-theta."""

    def loss(offset, size):
        moved = lambda x, scale: model(x + offset, scale)
        params = jax.tree.map(jnp.array, (THETA, PHI))
        return rws_jax.wake_theta_loss(*params, *seeded(moved, guide), X, SCALE, data_chunk_size=size, **HOW)

    found, expected = jax.jit(lambda: [jax.grad(loss)(0.1, size) for size in (4, None)])()
    assert jnp.abs(expected) > 0.1
    assert jnp.allclose(found, expected, rtol=1e-5)


def test_gradients_have_the_types_of_parameters_and_are_summed_in_single_precision():
    """In bfloat16 a sum of 1,000 gradients of one size would stop to grow."""

    def model(x):
        numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0).astype(jnp.float32) + 1.0, 1.0))

    def gradient(size):
        loss = lambda a: rws_jax.sleep_phi_loss(
            {}, {"a": a}, *seeded(model, guide), jnp.zeros(1000), data_axes=0, data_chunk_size=size
        )
        return jax.jit(jax.grad(loss))(jnp.zeros((), jnp.bfloat16))

    found, expected = gradient(1), gradient(None)
    assert found.dtype == expected.dtype == jnp.bfloat16
    assert jnp.allclose(found.astype(float), expected.astype(float), rtol=0.01)


@pytest.mark.slow
def test_what_comes_after_training_is_taken_in_chunks_too():
    params, programs = THETA | PHI, (model, guide)
    run = lambda size: rws_jax.importance_sample(
        jax.random.key(0), params, *programs, X, SCALE, num_particles=20, data_axes=(0, None), data_chunk_size=size
    )
    chex.assert_trees_all_close(run(4).log_weights, run(None).log_weights, rtol=1e-5)
    chex.assert_trees_all_equal(run(4).samples, run(None).samples)


ERRORS = {
    "no number": ({"data_chunk_size": 0}, "option 'data_chunk_size' is too small", "data_chunk_size=32"),
    "programs of all data": ({"data_axes": None}, "option 'data_axes' is not", "write them for one datum"),
    "one by one": ({"vectorize_particles": False}, "do not go together", "data_chunk_size=None"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_go_together_is_refused(name):
    options, message, word = ERRORS[name]
    with pytest.raises(ValueError, match=message) as error:
        rws_jax.make_step(model, guide, **(HOW | {"data_chunk_size": 4} | options))
    check(error, ValueError, word)
