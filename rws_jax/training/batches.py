"""What `fit` takes for an iterable of batches, and what for the arguments of one step."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from rws_jax.core.errors import describe, fail

_HINT = "draw batches by rws_jax.minibatches(rng_key, size, x); all of x in every step is fit(rws.step, state, 1000, x)"


def check_batches(value: Any) -> None:
    """An array or a dict would be iterated over as well, row by row or key by key."""
    if value is None or (isinstance(value, Iterable) and not _is_one(value)):
        return
    is_data = _is_one(value)
    fail(
        TypeError,
        "option 'batches' is data and no iterable of batches" if is_data else "option 'batches' has the wrong type",
        expected="an iterable whose items are what one step takes",
        found=describe(value)[:200] if hasattr(value, "dtype") else f"a {type(value).__name__}",
        hint=_HINT if is_data else "pass rws_jax.minibatches(rng_key, size, x, y), or [(x1, y1), (x2, y2), ...], say",
    )


def arguments_of(batch: Any) -> tuple:
    """Positional arguments of one step: items of a plain tuple or list; all else, a NamedTuple as well, is one.

    Arrays of other libraries, as data loaders yield them, become NumPy's.
    """
    arguments = tuple(batch) if isinstance(batch, tuple | list) and not _is_one(batch) else (batch,)
    return jax.tree.map(_as_numpy, arguments)


def _is_one(value: Any) -> bool:
    """Whether this is one argument rather than several of them, although it has items."""
    return isinstance(value, Mapping | str | bytes) or hasattr(value, "__array__") or hasattr(value, "_fields")


def _as_numpy(leaf: Any) -> Any:
    foreign = hasattr(leaf, "__array__") and not isinstance(leaf, jax.Array | np.ndarray | np.generic)
    return np.asarray(leaf) if foreign else leaf
