"""What all proposals need of arrays: equal ranks, outputs cut into parts, and priors without a gradient."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from numpyro.distributions import Distribution

from rws_jax.core.sites import base_distribution


def of_one_rank(*arrays: jax.Array) -> list[jax.Array]:
    """The same arrays with dimensions of size 1 in front, as many as make their ranks equal."""
    rank = max(array.ndim for array in arrays)
    return [array.reshape((1,) * (rank - array.ndim) + array.shape) for array in arrays]


def flat_events(value: jax.Array, event_dim: int) -> jax.Array:
    """The same numbers, those of one event along the last axis."""
    batch = value.shape[: value.ndim - event_dim]
    return value.reshape((*batch, math.prod(value.shape[len(batch) :])))


def cut(outputs: jax.Array, shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    """The outputs of a head, last axis, as arrays of these shapes with the same batch dimensions in front."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = [outputs[..., end - int(np.prod(shape)) : end] for shape, end in zip(shapes, ends, strict=True)]
    return [part.reshape(outputs.shape[:-1] + shape) for part, shape in zip(parts, shapes, strict=True)]


def strictly_lower(entries: jax.Array, num: int) -> jax.Array:
    """Matrices (..., num, num) of zeros with `entries` (..., num (num - 1) / 2) below the diagonal, row by row."""
    below = np.tril(np.ones((num, num), bool), -1)
    position = np.where(below, np.cumsum(below).reshape(num, num) - 1, 0)
    return jnp.where(below.reshape((1,) * (entries.ndim - 1) + below.shape), entries[..., position], 0.0)


def softly_bounded(outputs: jax.Array, bound: float = 8.0) -> jax.Array:
    """The outputs themselves near zero, and never beyond the bound."""
    return bound * jnp.tanh(outputs / bound)


def stopped(fn: Distribution) -> Distribution:
    """The same distribution, into whose parameters no gradient flows.

    Parameters that are known stay known: as results of an operation under `jax.jit`, bounds of supports would not.
    """
    leaves, structure = jax.tree.flatten(fn)
    if not any(isinstance(leaf, Tracer) for leaf in leaves):
        return fn
    # The proposal belongs to the guide, and the prior's parameters to the model.
    stop = lambda leaf: lax.stop_gradient(leaf) if isinstance(leaf, Tracer) else leaf
    return jax.tree.unflatten(structure, [stop(leaf) for leaf in leaves])


def dtype_of_draws(fn: Distribution) -> Any:
    """The type of numbers that a distribution draws."""
    leaves = tuple(jnp.result_type(leaf) for leaf in jax.tree.leaves(fn))
    kind = type(base_distribution(fn)), leaves, jnp.result_type(float)
    if kind not in _DTYPES:
        with jax.numpy_rank_promotion("allow"):
            _DTYPES[kind] = jax.eval_shape(lambda: jnp.asarray(fn.sample(jax.random.key(0)))).dtype
    return _DTYPES[kind]


_DTYPES: dict[tuple, Any] = {}  # programs that branch run un-jitted, and ask at each draw
