"""Sums over particles in chunks: memory does not grow with their number, and gradients are exact all the same.

Knows indices and functions of them, not what particles are. A chunk is an array of indices; each chunk is run, reduced
and forgotten before the next.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.validation import fail


def summed(parts: Callable[[Any, jax.Array], tuple], params: Any, num_particles: int, chunk_size: int) -> tuple:
    """Sums over all particles of scalar losses, differentiated with respect to `params` chunk by chunk.

    Where autodiff would keep what every chunk has computed until it goes back over it, gradients are taken along with
    the values and only added up.

    Args:
      parts: ``(params, indices) -> tuple`` of scalars, each a sum over these particles.
      params: what they are differentiated with respect to.
      num_particles: of all chunks together.
      chunk_size: particles per chunk; the last one may have fewer.

    Returns:
      The tuple of sums.
    """

    @jax.custom_vjp
    def total(params: Any) -> tuple:
        return accumulated(lambda indices: parts(params, indices), _add, num_particles, chunk_size)

    def forward(params: Any) -> tuple:
        def with_gradients(indices: jax.Array) -> tuple:
            values = parts(params, indices)
            # Each runs the programs anew; XLA merges what they share.
            grads = [jax.grad(lambda p, i=i: parts(p, indices)[i])(params) for i in range(len(values))]
            return values, tuple(grads)

        return accumulated(with_gradients, _add, num_particles, chunk_size)

    def backward(grads: tuple, cotangents: tuple) -> tuple:
        scaled = [jax.tree.map(lambda leaf, c=c: c * leaf, g) for c, g in zip(cotangents, grads, strict=True)]
        return (jax.tree.map(lambda *leaves: sum(leaves), *scaled),)

    total.defvjp(forward, backward)
    return total(params)


def constants(tree: Any) -> Any:
    """The same values, of which to ask for a gradient is an error: `summed` would leave it out."""
    return jax.tree.map(lambda leaf: _constant(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


@jax.custom_jvp
def _constant(x: jax.Array) -> jax.Array:
    return x


@_constant.defjvp
def _fail_differentiated(primals: tuple, tangents: tuple) -> Any:
    fail(
        ValueError,
        "option 'chunk_size' is given, and a loss is differentiated with respect to an argument of the programs",
        expected="gradients with respect to theta and phi alone",
        found=f"a gradient with respect to an array of shape {jnp.shape(primals[0])}",
        hint="leave out chunk_size, or make it a parameter",
    )


def accumulated(
    of_chunk: Callable[[jax.Array], Any],
    add: Callable[[Any, Any], Any],
    num_particles: int,
    chunk_size: int,
    zero: Callable[[Any], Any] | None = None,
) -> Any:
    """Trees of all chunks added up, beginning with `zero` of their shapes, by default zeros."""
    num_full = num_particles // chunk_size
    chunks = jnp.arange(num_full * chunk_size).reshape(num_full, chunk_size)
    rest = jnp.arange(num_full * chunk_size, num_particles)
    shapes = jax.eval_shape(of_chunk, rest if num_full == 0 else chunks[0])
    total = (zero or _zeros)(shapes)
    total, _ = lax.scan(lambda total, indices: (add(total, of_chunk(indices)), None), total, chunks)
    return add(total, of_chunk(rest)) if len(rest) else total


def _add(one: Any, other: Any) -> Any:
    return jax.tree.map(jnp.add, one, other)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
