"""`minibatches`: every row equally often, every batch a random subset of one size; and what `fit` takes for a batch."""

import itertools
from collections import Counter
from math import comb
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import rws_jax
from rws_jax import minibatches
from tests.checks.test_errors import check

pytestmark = pytest.mark.usefixtures("allow_key_reuse")  # the same start for all
KEY = jax.random.key(0)


def drawn(size, num_rows, epochs, rng_key=KEY):
    """Rows of each batch, shape (batches, size)."""
    return np.array([rows for (rows,) in minibatches(rng_key, size, np.arange(num_rows), epochs=epochs)])


@pytest.mark.floors
@pytest.mark.parametrize(("size", "num_rows"), [(3, 7), (5, 7), (6, 7), (7, 7), (1, 4), (4, 6), (2, 6)])
def test_every_row_is_drawn_once_in_each_epoch_and_never_twice_in_a_batch(size, num_rows):
    batches = drawn(size, num_rows, epochs=size)  # after so many epochs, nothing is left over
    assert batches.shape == (num_rows, size)
    assert all(len(set(batch)) == size for batch in batches)
    for epochs in range(1, size + 1):
        seen = Counter(batches.ravel()[: epochs * num_rows].tolist())
        assert set(seen.values()) == {epochs}, "in the order of the batches, epochs come one after the other"
        chex.assert_trees_all_equal(drawn(size, num_rows, epochs), batches[: epochs * num_rows // size])


def test_each_batch_is_a_random_subset_also_between_two_epochs():
    """Five rows by three: the second batch has two rows of the first epoch and one of the next. Each of the 10 subsets
    is as frequent as the others, by Pearson's statistic, within 5 standard deviations."""
    num_keys, num_subsets = 300, comb(5, 3)
    batches = np.array([drawn(3, 5, 2, key) for key in jax.random.split(KEY, num_keys)])
    for number in range(3):
        counts = Counter(frozenset(batch) for batch in batches[:, number].tolist())
        assert len(counts) == num_subsets
        expected = num_keys / num_subsets
        statistic = sum((count - expected) ** 2 for count in counts.values()) / expected
        assert statistic < (num_subsets - 1) + 5 * np.sqrt(2 * (num_subsets - 1))


def test_batches_are_those_of_the_key_and_have_no_end():
    first, again, other = (
        list(itertools.islice(minibatches(jax.random.key(seed), 3, np.arange(7)), 20)) for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    assert not all(np.array_equal(one, two) for (one,), (two,) in zip(first, other, strict=True))
    legacy = next(minibatches(jax.random.PRNGKey(0), 3, np.arange(7)))
    chex.assert_trees_all_equal(legacy, first[0])


class Foreign:
    """An array of another library, as torch's."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_items_are_trees_and_stay_where_they_are(tmp_path):
    mapped = np.memmap(tmp_path / "rows", np.uint8, "w+", shape=(6, 2))
    mapped[:] = np.arange(6)[:, None]
    on_device, keys = jnp.arange(6.0), jax.random.split(KEY, 6)
    arrays = {"x": mapped, "more": (on_device, keys)}, Foreign(np.arange(6)), np.arange(6, dtype=np.float64)
    for tree, foreign, double in minibatches(KEY, 4, *arrays, epochs=2):
        rows = np.asarray(foreign)
        assert type(tree["x"]) is type(foreign) is type(double) is np.ndarray
        assert tree["x"].dtype == np.uint8
        assert double.dtype == np.float64
        assert isinstance(tree["more"][0], jax.Array)
        chex.assert_trees_all_equal((tree["x"][:, 1], double), (rows.astype(np.uint8), rows.astype(float)))
        chex.assert_trees_all_equal(tree["more"], (on_device[rows], keys[rows]))


def test_rows_of_an_array_that_is_spread_over_devices():
    mesh = jax.make_mesh((2,), ("data",))
    spread = jax.device_put(jnp.arange(8.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    for batch, rows in minibatches(KEY, 4, spread, np.arange(8), epochs=1):
        np.testing.assert_array_equal(batch, rows)


ROWS = np.arange(4.0)
BAD = {
    "no key": ((3, 2, ROWS), {}, TypeError, ["the first argument of minibatches", "jax.random.key(0)"]),
    "no size": ((KEY, ROWS), {}, TypeError, ["'size'"]),
    "size zero": ((KEY, 0, ROWS), {}, ValueError, ["'size'", "how many rows"]),
    "epochs": ((KEY, 2, ROWS), {"epochs": 0}, ValueError, ["'epochs'", "None for no end"]),
    "no arrays": ((KEY, 2), {}, ValueError, ["no arrays"]),
    "None": ((KEY, 2, None), {}, ValueError, ["no arrays"]),
    "sizes": ((KEY, 2, ROWS, {"y": ROWS[:3]}), {}, ValueError, ["array 0 of shape (4,)", "array 1['y'] of shape (3,)"]),
    "scalar": ((KEY, 2, ROWS, np.float32(1.0)), {}, ValueError, ["array 1 of shape ()", "an argument of fit"]),
    "too large": ((KEY, 5, ROWS), {}, ValueError, ["size 5", "at most 4"]),
    "a list": ((KEY, 2, [1, 2, 3]), {}, TypeError, ["array 0[0]", "numpy.asarray"]),
    "text": ((KEY, 2, np.array(["a", "b"])), {}, TypeError, ["array 0", "an array of numbers"]),
    "masked": ((KEY, 2, np.ma.array([1, 2, 3])), {}, TypeError, ["array 0", "mask would be lost"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_right_is_refused_at_once(case):
    args, kwargs, kind, words = BAD[case]
    with pytest.raises(kind) as error:
        minibatches(*args, **kwargs)
    check(error, kind, *words)


def test_inside_of_jit_it_is_refused():
    with pytest.raises(TypeError) as error:
        jax.jit(lambda x: next(minibatches(KEY, 2, x)))(ROWS)
    check(error, TypeError, "inside of jit", "jax.random.choice")


# what fit takes for a batch


class Pair(NamedTuple):
    x: object
    y: object


def model(data, scale=1.0):
    x, y = (data["x"], data["y"]) if isinstance(data, dict) else data
    slope = numpyro.param("slope", 0.0)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("obs", dist.Normal(slope * x + z, scale), obs=y)


def guide(data, scale=1.0):
    x, y = (data["x"], data["y"]) if isinstance(data, dict) else data
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0) * y, scale))


RWS = rws_jax.make_step(model, guide)
X, Y = np.arange(8.0, dtype=np.float32), 2.0 * np.arange(8.0, dtype=np.float32)


@pytest.fixture(scope="module")
def start():
    return RWS.init(KEY, {"x": X[:4], "y": Y[:4]})


@pytest.fixture(scope="module")
def expected(start):
    return RWS.step(start, {"x": X[:4], "y": Y[:4]})[0].theta


# one batch, whatever it is wrapped in, that is one argument of the programs
ONE = {
    "a dict": {"x": X[:4], "y": Y[:4]},
    "a dict of another library's": {"x": Foreign(X[:4]), "y": Foreign(Y[:4])},
    "a NamedTuple": Pair(X[:4], Y[:4]),
    "a NamedTuple of another library's": Pair(Foreign(X[:4]), jnp.asarray(Y[:4])),
    "an array": np.stack([X[:4], Y[:4]]),
    "an array of another library's": Foreign(np.stack([X[:4], Y[:4]])),
    "a tuple of a tuple": ((X[:4], Y[:4]),),
    "a list of a NamedTuple": [Pair(Foreign(X[:4]), Foreign(Y[:4]))],
    "two arguments, in a tuple": (Pair(X[:4], Y[:4]), 1.0),
    "two arguments, in a list": [{"x": X[:4], "y": Y[:4]}, Foreign(1.0)],
}


@pytest.mark.parametrize("batch", ONE.values(), ids=ONE)
def test_plain_tuples_and_lists_are_arguments_and_all_else_is_one(start, expected, batch):
    state, infos = rws_jax.fit(RWS.step, start, 5, batches=[batch], progress_bar=False)
    assert infos.finite.tolist() == [True]
    chex.assert_trees_all_close(state.theta, expected, rtol=1e-6)


class Loader:
    """What torch's DataLoader is: not an iterator, and its batches are lists of tensors."""

    def __iter__(self):
        return iter([[Foreign(X[:4]), Foreign(Y[:4])], [Foreign(X[4:]), Foreign(Y[4:])]])


def test_batches_of_a_data_loader_and_of_minibatches_train():
    rws = rws_jax.make_step(lambda x, y: model((x, y)), lambda x, y: guide((x, y)))
    state = rws.init(KEY, X[:4], Y[:4])
    found, _ = rws_jax.fit(rws.step, state, 5, batches=Loader(), progress_bar=False)
    for rows in (slice(4), slice(4, 8)):
        state, _ = rws.step(state, X[rows], Y[rows])
    chex.assert_trees_all_close(found.theta, state.theta, rtol=1e-6)
    found, infos = rws_jax.fit(rws.step, found, 5, batches=minibatches(KEY, 4, X, Y), progress_bar=False)
    assert infos.finite.tolist() == [True] * 5


DATA = {
    "NumPy's array": X,
    "JAX's array": jnp.asarray(X),
    "a matrix": X[:, None],
    "another library's array": Foreign(X),
    "a dict": {"x": X, "y": Y},
    "a NamedTuple": Pair(X, Y),
    "text": "abc",
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_data_in_place_of_an_iterable_of_batches_are_refused(start, data):
    with pytest.raises(TypeError, match="option 'batches' is data") as error:
        rws_jax.fit(RWS.step, start, 5, batches=data)
    check(error, TypeError, "an iterable", "rws_jax.minibatches(rng_key, size, x)")
