"""States may be donated: every array of a state has memory of its own, which nobody else needs."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import rws_jax

pytestmark = pytest.mark.usefixtures("allow_key_reuse")  # the same start for all


def pointers(tree):
    """Where in memory all arrays are, on each device."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    leaves = [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]
    return [shard.data.unsafe_buffer_pointer() for leaf in leaves for shard in leaf.addressable_shards]


def make(initial, optimizer, **options):
    """One array is the initial value of two parameters of the model, and of two of the guide."""

    def model(x):
        a, b = numpyro.param("a", initial), numpyro.param("b", initial)
        z = numpyro.sample("z", dist.Normal(a[0], 1.0))
        numpyro.sample("x", dist.Normal(z + b[0], 1.0), obs=x)

    def guide(x):
        c, d = numpyro.param("c", initial), numpyro.param("d", initial)
        numpyro.sample("z", dist.Normal(c[0] + x * d[0], 1.0))

    return rws_jax.make_step(model, guide, theta_optimizer=optimizer, phi_optimizer=optimizer, **options)


def spread(x):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec()))


CASES = {
    "adam": (optax.adam(0.1), jax.random.key, jnp.asarray, {}),
    "a legacy key": (optax.adam(0.1), jax.random.PRNGKey, jnp.asarray, {}),
    "no state": (optax.sgd(0.1), jax.random.key, jnp.asarray, {}),
    "an optimizer that keeps parameters": (optax.contrib.schedule_free_sgd(0.1), jax.random.key, jnp.asarray, {}),
    "over devices": (optax.adam(0.1), jax.random.key, spread, {}),
    "several updates of the guide": (optax.adam(0.1), jax.random.key, jnp.asarray, {"phi_steps": 2}),
}


@pytest.mark.parametrize(("optimizer", "make_key", "place", "options"), CASES.values(), ids=CASES)
def test_states_are_donated_and_nothing_else(optimizer, make_key, place, options):
    rng_key, initial, x = make_key(0), place(jnp.zeros(50)), place(jnp.array(1.0))
    rws = make(initial, optimizer, **options)
    state = rws.init(rng_key, x)
    assert max(Counter(pointers(state)).values()) == 1
    assert not set(pointers(state)) & set(pointers((rng_key, initial, x)))
    expected, _ = rws.step(rws.step(state, x)[0], x)

    step, params = jax.jit(rws.step, donate_argnums=0), rws.get_params(state, x)
    for _ in range(2):
        old = state
        state, _ = step(state, x)
    assert old.theta["a"].is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((rng_key, initial, x, params)))
    assert state.theta["a"][0] == pytest.approx(float(expected.theta["a"][0]), rel=1e-5)


@pytest.mark.parametrize("transform", [jax.jit, lambda init: jax.vmap(init, in_axes=(0, None))], ids=["jit", "vmap"])
def test_so_are_states_of_a_transformed_init(transform):
    rws = make(jnp.zeros(50), optax.adam(0.1))
    keys = jax.random.key(0) if transform is jax.jit else jax.random.split(jax.random.key(0), 3)
    state = transform(rws.init)(keys, jnp.array(1.0))
    assert max(Counter(pointers(state)).values()) == 1
    assert not set(pointers(state)) & set(pointers(keys))
