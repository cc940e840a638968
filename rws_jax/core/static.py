"""Arguments that are no arrays: part of a tree's structure, not of its leaves, so that they pass around every trace.

Two static values are the same if they are equal and of one type; what is compiled for the one serves the other.
"""

from collections.abc import Hashable
from enum import Enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_static
class Static:
    """A value in the place of a leaf, as a node without leaves."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._key = _key_of(value)  # of what the value is now: a namespace may change

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return repr(self.value)


def unwrapped_static(tree: Any) -> Any:
    """The same tree with static values as they are; its other leaves are the same objects."""
    is_static = lambda node: isinstance(node, Static)
    nodes = jax.tree.leaves(tree, is_leaf=is_static)
    if not any(map(is_static, nodes)):
        return tree
    return jax.tree.map(lambda node: node.value if is_static(node) else node, tree, is_leaf=is_static)


def is_traceable(leaf: Any) -> bool:
    """Whether a leaf is traced: an array or a number, but neither a bool nor a member of an enum, which are flags."""
    if isinstance(leaf, jax.Array):
        return True
    if isinstance(leaf, np.ndarray | np.generic):
        return is_numeric(leaf.dtype)
    if isinstance(leaf, int | float | complex):
        return not isinstance(leaf, bool | Enum)
    return isinstance(leaf, jax.ShapeDtypeStruct)


def is_foreign(leaf: Any) -> bool:
    """Whether a leaf holds the numbers of another library, which numpy can read."""
    return hasattr(leaf, "__array__") and not isinstance(leaf, type | jax.Array | np.ndarray | np.generic)


def is_numeric(dtype: Any) -> bool:
    """Whether an array of this type holds numbers or truth values, and not text, times or objects."""
    return dtype.kind not in "OUSMm" and dtype.names is None and (dtype.kind != "V" or jnp.issubdtype(dtype, np.number))


def _key_of(value: Any) -> Hashable:
    """What decides whether two values are the same; TypeError if nothing does."""
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_key_of, value))
    if isinstance(value, dict):
        return dict, tuple((key, _key_of(part)) for key, part in value.items())
    if isinstance(value, set):
        return set, frozenset(value)
    try:
        hash(value)
    except TypeError:
        if hasattr(value, "__array__") or not hasattr(value, "__dict__"):
            raise
        return type(value), _key_of(vars(value))  # as of an argparse.Namespace, or a dataclass
    return type(value), value
