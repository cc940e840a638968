"""What `fit` takes for an iterable of batches, and what for the arguments of one step."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from rws_jax.core.errors import describe, fail

_HINT = "draw batches by rws_jax.minibatches(rng_key, size, x); all of x in every step is fit(rws.step, state, 1000, x)"


def check_batches(value: Any, *, optional: bool = True, hint: str = _HINT) -> None:
    """An array or a dict would be iterated over as well, row by row or key by key."""
    if (value is None and optional) or (isinstance(value, Iterable) and not _is_one(value)):
        return
    what, is_data = f"{'option' if optional else 'argument'} 'batches'", _is_one(value)
    fail(
        TypeError,
        f"{what} is data and no iterable of batches" if is_data else f"{what} has the wrong type",
        expected=f"an iterable whose items are what one {'step' if optional else 'batch'} takes",
        found=describe(value)[:200] if hasattr(value, "dtype") else f"a {type(value).__name__}",
        hint=hint if is_data else "pass rws_jax.minibatches(rng_key, size, x, y), or [(x1, y1), (x2, y2), ...], say",
    )


def check_ends(value: Any, function: str) -> None:
    """Some iterables say that they have no end."""
    if getattr(value, "epochs", 1) is None:
        fail(
            ValueError,
            f"argument 'batches' of {function} has no end",
            expected="an iterable that ends",
            found="rws_jax.minibatches(...) without epochs",
            hint="pass epochs=1 to minibatches, which leaves out rows that do not fill a batch, or slices, that keep"
            " all of them: ((x[i : i + 100],) for i in range(0, len(x), 100))",
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
