"""Named tuples of arrays in one line, as a notebook shows what a call returns: numbers where they are few."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

_MAX_ENTRIES = 8  # of a dict of parameters


def summary(named: Any) -> str:
    """Of a NamedTuple of arrays, dicts of arrays and other trees; what is None is left out.

    A scalar is shown as it is, an array of one axis by its first and last number, truth values by how many there are.
    All other arrays are shown by type and shape, as are those whose values are not known or not on this host.
    """
    values = named._asdict().items()
    shapes = {np.shape(value) for _, value in values if _is_array(value)}
    parts = [f"shape={shapes.pop()}"] if len(shapes) == 1 and shapes != {()} else []
    parts += [f"{name}={_shown(value)}" for name, value in values if value is not None]
    return f"{type(named).__name__}({', '.join(parts)})"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        entries = [f"{name!r}: {entry(value[name])}" for name in list(value)[:_MAX_ENTRIES]]
        more = len(value) - len(entries)
        return "{" + ", ".join(entries + ([f"and {more} more"] if more else [])) + "}"
    if not _is_array(value):
        return entry(value)
    if _is_known(value) and value.dtype == bool and np.ndim(value):
        return f"{int(np.sum(value))} of {np.size(value)}"
    if _is_known(value) and np.ndim(value) == 1 and np.size(value):
        return f"{_number(value[0])} ... {_number(value[-1])}"
    return entry(value)


def entry(value: Any) -> str:
    """A single value, as a number where it is one that is known, else by type and shape."""
    if not _is_array(value):
        leaves = jax.tree.leaves(value)
        return f"{len(leaves)} arrays" if all(map(_is_array, leaves)) else repr(value)
    return _number(value) if _is_known(value) and not np.ndim(value) else f"{value.dtype}{list(np.shape(value))}"


def _number(value: Any) -> str:
    return f"{float(value):.4g}" if np.issubdtype(value.dtype, np.floating) else str(value)


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _is_known(value: Any) -> bool:
    """Whether the numbers of an array are here to be shown."""
    if isinstance(value, jax.Array):
        is_key = jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
        return not (is_key or isinstance(value, Tracer) or value.is_deleted()) and value.is_fully_addressable
    return isinstance(value, np.ndarray | np.generic)
