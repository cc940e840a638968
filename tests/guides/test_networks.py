"""Networks and data sites of the user's: what is passed to `compile_guide` beside the model."""

import copy
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx

import rws_jax
from tests.checks.test_errors import check
from tests.guides.cases import SMALL, weights_of

pytestmark = pytest.mark.usefixtures("allow_rank_promotion", "allow_key_reuse")

X = jnp.array([0.3, 1.2, 4.0])
NUM_OUTPUTS = 1 + 2 + 2 * 2  # of a mixture of two Gaussians and the prior


def square(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z**2, 0.3), obs=x)


class Linen(linen.Module):
    size: int

    @linen.compact
    def __call__(self, x):
        return linen.tanh(linen.Dense(self.size)(jnp.atleast_1d(x)))


class Nnx(nnx.Module):
    def __init__(self, num_inputs, size):
        self.layer = nnx.Linear(num_inputs, size, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return jnp.tanh(self.layer(jnp.atleast_1d(x)))


class Equinox(eqx.Module):
    layer: eqx.nn.Linear

    def __init__(self, num_inputs, size):
        self.layer = eqx.nn.Linear(num_inputs, size, key=jax.random.key(0))

    def __call__(self, x):
        return jnp.tanh(self.layer(jnp.atleast_1d(x)))


EMBEDDINGS = {
    "function": lambda x: jnp.stack([x, jnp.sqrt(jnp.abs(x))]),
    "linen": Linen(3),
    "nnx": Nnx(1, 3),
    "equinox": Equinox(1, 3),
}
HEADS = {"linen": Linen(NUM_OUTPUTS), "nnx": Nnx(5, NUM_OUTPUTS), "equinox": Equinox(5, NUM_OUTPUTS)}


def moved_by_a_step(guide):
    """Whether a step of sleep moves each array of the guide's, by its path."""
    rws = rws_jax.make_step(square, guide, phi_optimizer=optax.adam(1e-2), insomnia=0.0, model_has_params=False)
    state = rws.init(jax.random.key(0), X)
    after, _ = rws.step(state, X)
    moves = jax.tree.map(lambda old, new: bool((old != new).any()), dict(state.phi), dict(after.phi))
    return {jax.tree_util.keystr(path): move for path, move in jax.tree.leaves_with_path(moves)}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_data_are_embedded_by_a_network_of_the_users(name):
    moves = moved_by_a_step(rws_jax.compile_guide(square, embed=EMBEDDINGS[name], **SMALL))
    assert all(moves.values()), moves
    assert any("guide/embed" in path for path in moves) == (name != "function")
    assert not any("shift" in path for path in moves)


@pytest.mark.parametrize("name", HEADS)
def test_proposals_come_from_a_network_of_the_users(name):
    moves = moved_by_a_step(rws_jax.compile_guide(square, networks={"z": HEADS[name]}, **SMALL))
    assert all(move for path, move in moves.items() if "shift" not in path and "scale" not in path), moves
    assert any("guide/z" in path for path in moves)
    assert not any("'outputs'" in path for path in moves)


def test_an_embedding_is_of_one_datum():
    guide = rws_jax.compile_guide(square, embed=EMBEDDINGS["function"], **SMALL)
    params = weights_of(guide, X)
    run = lambda x: rws_jax.importance_sample(jax.random.key(1), params, square, guide, x, num_particles=20)
    np.testing.assert_allclose(run(X).log_weights[:, :2], run(X[:2]).log_weights, rtol=1e-5)


def test_an_embedding_takes_a_row_of_data_and_all_else_as_a_whole():
    def model(x, design):
        with numpyro.plate("rows", len(design)):
            weights = numpyro.sample("weights", dist.Normal(design.sum(axis=-1), 1.0))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(weights.sum(), 1.0))
            numpyro.sample("x", dist.Normal(z, 0.3), obs=x)

    shapes = []

    def embed(x, design):
        shapes.append((jnp.shape(x), jnp.shape(design)))
        return jnp.append(design.ravel(), x)

    guide = rws_jax.compile_guide(model, embed=embed, **SMALL)
    params = weights_of(guide, X, jnp.ones((2, 2)))
    assert set(shapes) == {((), (2, 2))}
    assert list(params["guide"]["data"]["arguments"]) == ["x over data; design"]


def draws_its_data(num):
    with numpyro.plate("data", num):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5))


@pytest.mark.slow
def test_data_that_the_model_draws_are_read_from_observations():
    def model():
        draws_its_data(3)

    guide = rws_jax.compile_guide(model, observed_sites=("x",), **SMALL)
    options = {"insomnia": 0.0, "observed_sites": ("x",), "model_has_params": False, "num_sleep_particles": 20}
    rws = rws_jax.make_step(model, guide, phi_optimizer=optax.adam(1e-2), **options)
    state, _ = rws_jax.fit(rws.step, rws.init(jax.random.key(0)), 300, progress_bar=False)
    with_data = numpyro.handlers.substitute(guide, data=dict(state.phi))
    predict = numpyro.infer.Predictive(with_data, num_samples=400)
    draws = predict(jax.random.key(1), observations={"x": jnp.array([-2.0, 0.0, 2.0])})
    assert set(draws) == {"z"}
    np.testing.assert_allclose(draws["z"].mean(axis=0), [-1.6, 0.0, 1.6], atol=0.25)  # x / (1 + 0.5**2)
    blind = weights_of(guide)
    with pytest.raises(ValueError, match="no weights") as error:
        numpyro.infer.Predictive(guide, params=blind, num_samples=1)(jax.random.key(0), observations={"x": X})
    check(error, ValueError, "no weights for observations['x']")


def test_copies_of_a_guide_are_that_guide():
    guide = rws_jax.compile_guide(square, **SMALL)
    params = weights_of(guide, X)
    for copied in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        jax.tree.map(np.testing.assert_array_equal, weights_of(copied, X), params)


def test_arguments_that_are_one_object_are_told_apart():
    def model(x, y):
        for name, value in (("x", x), ("y", y)):
            with numpyro.plate(f"plate of {name}", 3):
                z = numpyro.sample(f"z of {name}", dist.Normal(0.0, 1.0))
                numpyro.sample(name, dist.Normal(z, 1.0), obs=value)

    zeros = jnp.zeros(3)
    keys = [weights_of(rws_jax.compile_guide(model, **SMALL), *args) for args in ((zeros, zeros), (zeros, zeros + 0))]
    one, two = (sorted(params["guide"]["data"]["arguments"]) for params in keys)
    assert one == two == ["x over plate of x", "y over plate of y"]


def test_what_is_missing_counts_as_its_median():
    guide = rws_jax.compile_guide(square, **SMALL)
    params = weights_of(guide, X)
    shift = params["guide"]["data"]["arguments"]["x over data"]["shift"][0]
    draws = [
        numpyro.infer.Predictive(guide, params=params, num_samples=3)(jax.random.key(0), X.at[1].set(value))["z"]
        for value in (jnp.nan, shift)
    ]
    np.testing.assert_allclose(*draws, rtol=1e-6)


OPTIONS = {
    "embed": ({"embed": 3}, "is no function"),
    "class": ({"embed": Nnx}, "is no function"),
    "networks": ({"networks": {"z": 3}}, "is no function"),
    "hidden": ({"hidden": 0}, "'hidden'"),
    "components": ({"components": 1.5}, "'components'"),
    "autoregressive": ({"autoregressive": "no"}, "'autoregressive'"),
    "prefix": ({"prefix": ""}, "is no name"),
    "data_plates": ({"data_plates": {"x": "data"}}, "names no plates for argument 'x'"),
    "observed_sites": ({"observed_sites": "x"}, "is no tuple of names"),
    "no such site": ({"networks": {"y": Linen(3)}}, "names 'y', which is none of the latent sites"),
    "no such argument": ({"data_plates": {"y": ("data",)}}, "names 'y', which is none of the arguments"),
    "no such plate": ({"data_plates": {"x": ("rows",)}}, "names 'rows', which is none of the plates"),
    "no axis": ({"data_plates": {"x": ()}}, "no argument with an axis of plate 'data'"),
    "no vector": ({"embed": lambda x: x}, "returns no vector"),
    "outputs": ({"networks": {"z": Linen(3)}}, "has another number of outputs"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_do_not_fit_are_named(name):
    options, problem = OPTIONS[name]

    def two(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            y = numpyro.sample("after", dist.Normal(z, 1.0))
            numpyro.sample("x", dist.Normal(y, 0.3), obs=x)

    with pytest.raises((TypeError, ValueError)) as error:
        weights_of(rws_jax.compile_guide(two, **SMALL | options), X)
    check(error, error.type, problem)
