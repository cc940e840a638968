"""State that modules change as they run, of flax.linen and flax.nnx: one for all particles, carried from step to step."""

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
