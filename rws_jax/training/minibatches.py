"""`minibatches`: an iterable of shuffled batches of one shape, for `fit`."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.checks.arguments import check_int, check_rng_key
from rws_jax.core.errors import describe, fail
from rws_jax.core.trees import is_traced
from rws_jax.execution.devices import automatic


def minibatches(rng_key: jax.Array, size: int, /, *arrays: Any, epochs: int | None = None) -> Iterator[tuple]:
    """Shuffled minibatches of one shape, as `fit` takes them.

    An epoch is all rows in random order. Where `size` does not divide their number, the rows that are left over begin
    the next epoch's first batch, which is filled up by others. So every row is drawn once in each epoch; no row is
    twice in a batch; and every batch is, taken for itself, a uniformly random subset of the rows, so that sums over it,
    scaled by (number of rows) / `size`, are unbiased for those over all rows.

    Args:
      rng_key: JAX random key, which decides all batches: from the same key come the same ones.
      size: rows in a batch.
      *arrays: arrays, or trees of arrays such as dicts, that agree on the size of their first axis. One item of a batch
        comes from each. NumPy's arrays stay in the host's memory, and only batches go to the device; JAX's stay where
        they are.
      epochs: how often every row is drawn; None for no end. After the last epoch, rows that do not fill a batch are
        left out.

    Returns:
      An iterator of tuples with an item for each of `arrays`: its rows of this batch, shape ``(size, *row)``.

    Raises:
      ValueError: if arrays differ in their number of rows, or have fewer than `size`.
      TypeError: for an argument of the wrong kind.

    Example:
      >>> import jax, numpy as np, rws_jax
      >>> x, y = np.arange(5), {"label": np.arange(5) * 10}
      >>> for x_batch, y_batch in rws_jax.minibatches(jax.random.key(0), 2, x, y, epochs=2):
      ...     assert (y_batch["label"] == x_batch * 10).all()
      >>> drawn = [x_batch for x_batch, in rws_jax.minibatches(jax.random.key(0), 2, x, epochs=2)]
      >>> np.bincount(np.concatenate(drawn)).tolist()
      [2, 2, 2, 2, 2]
    """
    hint = "call minibatches(jax.random.key(0), 100, x, y), say"
    check_rng_key(rng_key, "the first argument of minibatches", hint)
    check_int(size, "size", 1, expected="an int >= 1, how many rows a batch has", hint=hint)
    if epochs is not None:
        check_int(epochs, "epochs", 1, expected="an int >= 1, or None for no end", hint="leave it out")
    if is_traced((rng_key, arrays)):
        what, hint = "minibatches is called inside of jit, scan or vmap", "draw rows by jax.random.choice there"
        fail(TypeError, what, expected="a call from Python", found="a traced argument", hint=hint)
    trees = tuple(jax.tree_util.tree_map_with_path(_as_array, arrays))
    return _Minibatches(_batches(rng_key, int(size), _num_rows(trees, size), epochs, trees), epochs)


class _Minibatches(Iterator[tuple]):
    """An iterator that says whether it ends, so that who needs an end can ask for it."""

    def __init__(self, batches: Iterator[tuple], epochs: int | None) -> None:
        self._batches, self.epochs = batches, epochs

    def __next__(self) -> tuple:
        return next(self._batches)


def _batches(rng_key: jax.Array, size: int, num_rows: int, epochs: int | None, trees: tuple) -> Iterator[tuple]:
    left = np.zeros(0, int)  # rows of the last epoch that did not fill a batch
    for epoch in itertools.count() if epochs is None else range(epochs):
        order = _order(jax.random.fold_in(rng_key, epoch), size, num_rows, left)
        num_full = len(order) // size * size
        for start in range(0, num_full, size):
            rows = order[start : start + size]
            yield jax.tree.map(lambda leaf, rows=rows: _take(leaf, rows), trees)
        left = order[num_full:]


def _order(rng_key: jax.Array, size: int, num_rows: int, left: np.ndarray) -> np.ndarray:
    """What is left of the last epoch, then all rows once, in an order that is random but for one thing.

    The first batch has no row twice: those that fill it up are not among those left.
    """
    rng_key, fill_key = jax.random.split(rng_key)
    order = np.asarray(jax.random.permutation(rng_key, num_rows))
    if not len(left):
        return order
    fill = np.asarray(jax.random.permutation(fill_key, num_rows))
    fill = _without(fill, left)[: size - len(left)]
    return np.concatenate([left, fill, _without(order, fill)])


def _without(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    kept = np.ones(len(rows), bool)  # by row; both orders are of all rows
    kept[others] = False
    return rows[kept[rows]]


def _take(leaf: Any, rows: np.ndarray) -> Any:
    return _gather(leaf, rows) if isinstance(leaf, jax.Array) else np.asarray(leaf[rows])


@jax.jit
@automatic
def _gather(leaf: jax.Array, rows: jax.Array) -> jax.Array:
    return leaf.at[rows].get(mode="promise_in_bounds", unique_indices=True)


def _as_array(path: tuple, leaf: Any) -> Any:
    """A leaf as it is, if it is JAX's or NumPy's; else as NumPy's, without a copy where its library allows it."""
    is_masked = isinstance(leaf, np.ma.MaskedArray)
    has_array = hasattr(leaf, "__array__") and not is_masked
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) if has_array else None
    if array is None or not _is_numeric(array):
        found = "a masked array, whose mask would be lost" if is_masked else describe(leaf if array is None else array)
        fail(
            TypeError,
            f"{_name(path)} of minibatches is not an array of numbers",
            expected="an array, or a tree of arrays, whose first axis are the rows",
            found=found[:200],
            hint="convert it by numpy.asarray; what is the same in all batches is an argument of fit",
        )
    return array


def _is_numeric(array: Any) -> bool:
    kinds = jnp.number, jnp.bool_, jax.dtypes.prng_key
    return any(jnp.issubdtype(array.dtype, kind) for kind in kinds)


def _num_rows(trees: tuple, size: int) -> int:
    """The size of the first axis, on which all arrays agree."""
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    problem, hint = None, "rows lie along the first axis; what is the same in all batches is an argument of fit"
    shapes = {_name(path): np.shape(leaf) for path, leaf in leaves}
    sizes = {shape[:1] for shape in shapes.values()}
    if not sizes:
        problem, hint = "minibatches has no arrays", "call minibatches(jax.random.key(0), 100, x, y), say"
    elif () in sizes or len(sizes) > 1:
        problem = "the arrays of minibatches do not agree on a number of rows"
    elif size > (num_rows := next(iter(sizes))[0]):
        problem, hint = f"size {size} of minibatches is more than there are rows", f"pass a size of at most {num_rows}"
    if problem is not None:
        found = ", ".join(f"{name} of shape {shape}" for name, shape in list(shapes.items())[:6]) or "none"
        fail(ValueError, problem, expected="arrays of one size of the first axis", found=found, hint=hint)
    return next(iter(sizes))[0]


def _name(path: tuple) -> str:
    """Of an argument, or of what is inside of it."""
    (position, *inside) = path
    return f"array {position.idx}{jax.tree_util.keystr(tuple(inside))}"
