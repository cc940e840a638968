"""Trees of arrays in the state: strong types, and no number that is not finite gets in."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def is_float(x: Any) -> bool:
    """Whether a leaf holds floating point numbers."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def strong(tree: Any) -> Any:
    """Without weak types, which would have the step traced once more when they turn strong."""
    cast = lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else lax.convert_element_type(x, x.dtype)
    return jax.tree.map(lambda x: cast(jnp.asarray(x)), tree)


def trainable(tree: Any) -> Any:
    """Strongly typed floats: a param site may start from a Python number."""
    return strong(jax.tree.map(lambda x: x if is_float(x) else jnp.asarray(x, float), tree))


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def stays_finite(new: Any, old: Any) -> jax.Array:
    """No number turns infinite, as a parameter may after a huge update."""
    ok = lambda new, old: jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old)) if is_float(new) else jnp.array(True)
    return jnp.all(jnp.array(jax.tree.leaves(jax.tree.map(ok, new, old))))


def select(taken: jax.Array, new: Any, old: Any) -> Any:
    """The tree `new` where `taken`, else `old`."""
    return jax.tree.map(lambda new, old: jnp.where(taken, new, old), new, old)
