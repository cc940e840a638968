"""Branching traces: what a program has drawn, one after the other, at the sites that Python branches on."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class BranchingValue(NamedTuple):
    """A branching site and its value, hashable. Names in parentheses are of choices outside of the programs."""

    name: str
    value: Any  # a Python number, or tuples of them
    dtype: str

    @classmethod
    def of(cls, name: str, value: jax.Array | np.ndarray) -> "BranchingValue":
        """Make one of an array whose values are known."""
        value = np.asarray(value)
        return cls(name, _frozen(value.tolist()), _name_of(value.dtype))

    @property
    def is_of_program(self) -> bool:
        """Whether a program has drawn it."""
        return not self.name.startswith("(")

    @property
    def array(self) -> jax.Array:
        """The value as a program sees it."""
        return _array(self)


BranchingTrace = tuple[BranchingValue, ...]
_MOST_DESCRIBED = 12


def describe_trace(trace: Iterable[BranchingValue]) -> str:
    """A branching trace as messages tell it."""
    each = [f"{value.name}={value.value}" for value in trace]
    if len(each) > _MOST_DESCRIBED:
        each[_MOST_DESCRIBED // 2 : -_MOST_DESCRIBED // 2] = [f"... ({len(each) - _MOST_DESCRIBED} more) ..."]
    values = ", ".join(each)
    return f"the path {values}" if values else "the empty path, before any branching site"


@lru_cache(maxsize=10_000)
def _array(value: BranchingValue) -> jax.Array:
    with jax.ensure_compile_time_eval():  # as it is kept, whatever is traced
        return jnp.asarray(value.value, value.dtype)


@lru_cache(maxsize=100)
def _name_of(dtype: np.dtype) -> str:
    return str(dtype)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
