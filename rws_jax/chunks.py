"""Sums over particles in chunks: memory does not grow with their number, and gradients are exact all the same.

Knows indices and functions of them, not what particles are. A chunk is an array of indices; each chunk is run, reduced
and forgotten before the next. Where autodiff would keep what every chunk has computed until it goes back over it,
`values_and_grads` takes gradients along with the values, and `with_grads` hands them to autodiff as they are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.trees import is_float
from rws_jax.validation import fail


def values_and_grads(
    learns: Callable[[Any, jax.Array], tuple[jax.Array, Any]], params: Any, num_particles: int, chunk_size: int
) -> tuple[Any, Any]:
    """Sums over all particles of some values, and of gradients.

    Args:
      learns: ``(params, indices) -> (scalar to differentiate, values)``, each a sum over these particles.
      params: with respect to which it is differentiated.
      num_particles: of all chunks together.
      chunk_size: particles per chunk; the last one may have fewer.

    Returns:
      The sum of values, and gradients like `params`, of single precision at least. What is not a float has None.
    """
    leaves, treedef = jax.tree.flatten(lax.stop_gradient(params))  # `with_grads` is how they are differentiated
    floats = [leaf for leaf in leaves if is_float(leaf)]

    def of_chunk(indices: jax.Array) -> tuple[Any, list]:
        def of_floats(floats: list) -> tuple[jax.Array, Any]:
            rest = iter(floats)
            whole = [next(rest) if is_float(leaf) else leaf for leaf in leaves]
            return learns(jax.tree.unflatten(treedef, whole), indices)

        grads, values = jax.grad(of_floats, has_aux=True)(floats)
        return values, [grad.astype(jnp.promote_types(grad.dtype, jnp.float32)) for grad in grads]

    values, grads = accumulated(of_chunk, _add, num_particles, chunk_size)
    rest = iter(grads)
    return values, jax.tree.unflatten(treedef, [next(rest) if is_float(leaf) else None for leaf in leaves])


def with_grads(value: jax.Array, grads: Any, params: Any) -> jax.Array:
    """`value`, whose gradient with respect to `params` is `grads`; whatever else it depends on, autodiff follows."""
    pairs = [(grad, param) for grad, param in zip(_leaves(grads), _leaves(params), strict=True) if grad is not None]
    return _with_grads(value, [grad for grad, _ in pairs], [jnp.asarray(param) for _, param in pairs])


def _leaves(tree: Any) -> list:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)


@jax.custom_jvp
def _with_grads(value: jax.Array, grads: list, params: list) -> jax.Array:
    return value


@_with_grads.defjvp
def _jvp(primals: tuple, tangents: tuple) -> tuple:
    value, grads, params = primals
    slope = jnp.zeros((), value.dtype)
    for grad, tangent in zip(_constants(grads, params), tangents[2], strict=True):
        slope = slope + jnp.sum(grad * tangent.astype(grad.dtype)).astype(value.dtype)
    return value, tangents[0] + slope


@jax.custom_jvp
def _constants(grads: list, params: list) -> list:
    return grads


@_constants.defjvp
def _fail_second_derivative(primals: tuple, tangents: tuple) -> Any:
    fail(
        ValueError,
        "option 'chunk_size' is given, and a loss is differentiated twice",
        expected="first derivatives alone, which chunks are summed for",
        found="a derivative of the gradient with respect to parameters",
        hint="leave out chunk_size",
    )


def accumulated(
    of_chunk: Callable[[jax.Array], Any],
    add: Callable[[Any, Any], Any],
    num_particles: int,
    chunk_size: int,
    zero: Callable[[Any], Any] | None = None,
) -> Any:
    """Trees of all chunks added up, beginning with `zero` of their shapes, by default zeros."""
    num_full, num_rest = divmod(num_particles, chunk_size)
    first = jnp.arange(chunk_size)
    total = (zero or _zeros)(jax.eval_shape(of_chunk, first))
    step = lambda total, number: (add(total, of_chunk(number * chunk_size + first)), None)
    total, _ = lax.scan(step, total, jnp.arange(num_full))
    return add(total, of_chunk(num_full * chunk_size + jnp.arange(num_rest))) if num_rest else total


def _add(one: Any, other: Any) -> Any:
    return jax.tree.map(jnp.add, one, other)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
