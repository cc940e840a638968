"""Trees of arrays: which leaves are floats, strong types, and numbers that stay finite."""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer


def is_float(x: object) -> bool:
    """Whether a leaf holds floating point numbers."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def is_traced(tree: object) -> bool:
    """Whether any leaf is known only at run time."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def stopped(tree: Any) -> Any:
    """The same tree, held constant; what is not traced is constant already, and costs no operation."""
    return lax.stop_gradient(tree) if is_traced(tree) else tree


def is_known(tree: object) -> bool:
    """Whether this process can read the values of all leaves now."""
    leaves = jax.tree.leaves(tree)
    return not is_traced(leaves) and all(leaf.is_fully_addressable for leaf in leaves if isinstance(leaf, jax.Array))


def split_floats(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The leaves that can be differentiated, and a function that puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    trained = [is_float(leaf) for leaf in leaves]

    def with_floats(floats: list[Any]) -> Any:
        rest = iter(floats)
        whole = [next(rest) if is_trained else leaf for leaf, is_trained in zip(leaves, trained, strict=True)]
        return jax.tree.unflatten(structure, whole)

    return [leaf for leaf, is_trained in zip(leaves, trained, strict=True) if is_trained], with_floats


def strong(tree: Any) -> Any:
    """Remove weak types, with which the step would be traced once more when they turn strong."""
    cast = lambda x: x if _is_key(x) else lax.convert_element_type(x, x.dtype)
    return jax.tree.map(lambda x: cast(jnp.asarray(x)), tree)


def with_keys_cloned(tree: Any) -> Any:
    """The same arrays in containers of their own; keys are used again on purpose, which JAX's check has to know."""
    return jax.tree.map(lambda leaf: jax.random.clone(leaf) if _is_key(leaf) else leaf, tree)


def chosen(condition: jax.Array, tree: Any, other: Any) -> Any:
    """One of two trees, whose leaves may be keys."""
    other = with_keys_cloned(other)
    kinds = [[(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(one)] for one in (tree, other)]
    if kinds[0] != kinds[1] or not isinstance(condition, Tracer):
        return with_keys_cloned(optax.tree.where(condition, tree, other))
    both = strong(tree), strong(other)
    return with_keys_cloned(lax.platform_dependent(condition, *both, cpu=_branch, default=_select))


def _branch(condition: jax.Array, tree: Any, other: Any) -> Any:
    """A branch for all leaves, where a select is a kernel to be compiled for each; GPUs would wait for the host."""
    return lax.cond(condition, lambda: tree, lambda: other)


def _select(condition: jax.Array, tree: Any, other: Any) -> Any:
    return jax.tree.map(lambda leaf, alternative: lax.select(condition, leaf, alternative), tree, other)


def trainable(tree: Any) -> Any:
    """Make all leaves strongly typed floats: a param site may start from a Python number."""
    return strong(jax.tree.map(lambda x: x if is_float(x) else jnp.asarray(x, float), tree))


def copied(tree: Any) -> Any:
    """The same arrays in memory that no other array has: to be donated, each must be one of its own."""

    def copy(x: jax.Array) -> jax.Array:
        elsewhere = isinstance(x, jax.Array) and not isinstance(x, Tracer) and not x.is_fully_addressable
        return jnp.copy(x) if elsewhere else jax.device_put(x, may_alias=False)  # which compiles nothing

    return jax.tree.map(copy, tree)


def all_finite(tree: object) -> jax.Array:
    """Whether every number of a tree is finite."""
    return _all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def stays_finite(new: Any, old: Any) -> jax.Array:
    """Whether no number turns infinite, as a parameter may after a huge update."""

    def stays(new: jax.Array, old: jax.Array) -> jax.Array:
        # A sum of floats compiles in half the time of a reduction of truths, and a choice between two constants is part
        # of its kernel, where one between arrays is a kernel of its own.
        return jnp.sum(jnp.where(jnp.isfinite(old) & ~jnp.isfinite(new), 1.0, 0.0)) == 0.0

    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    return _all(stays(new, old) for new, old in pairs if is_float(new))


def _all(truths: Iterable[jax.Array]) -> jax.Array:
    return reduce(jnp.logical_and, truths, jnp.array(True))


def _is_key(leaf: object) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
