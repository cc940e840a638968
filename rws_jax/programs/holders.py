"""Which of a model's arguments hold the data of its sites."""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.core.sites import Trace, short_names
from rws_jax.programs.program import Program


def holders_of(model: Program, positions: Any, numbers: Sequence[Any], sites: Trace) -> dict[str, list[int]]:
    """The numbers that hold the data of each site: the very array that it observes, or the argument named as it is."""
    try:
        args, kwargs = positions
        named: dict[str, Any] = dict(inspect.signature(model.fn).bind_partial(*args, **kwargs).arguments)
    except (TypeError, ValueError):  # not every callable has a signature
        named = {}
    holders = {}
    for name, short in short_names(sites).items():
        same = [i for i, number in enumerate(numbers) if number is sites[name]["real"]]
        own = jax.tree.leaves(named.get(name, named.get(short)))
        # The same array in two arguments is data in the one and a covariate in the other.
        found = [i for i in same if i in own] or own or (same if len(same) == 1 else [])
        if found:
            holders[name] = found
    return holders


def only_source(inputs: set[int], numbers: Sequence[Any], shape: tuple[int, ...]) -> list[int]:
    """Of the inputs that an observed value is computed from, the one that is data, if it stands out."""
    sources = [i - 1 for i in inputs if i > 0 and not jnp.issubdtype(jnp.result_type(numbers[i - 1]), bool)]
    alike = [i for i in sources if jnp.shape(numbers[i]) == shape]
    return sources if len(sources) == 1 else alike if len(alike) == 1 else []


def is_number(leaf: Any) -> bool:
    """Whether a leaf of the arguments is a number or an array of numbers."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc"
    return isinstance(leaf, jax.Array | int | float) and not isinstance(leaf, bool)
