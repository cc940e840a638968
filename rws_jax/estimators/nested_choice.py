"""One local particle for each element of inner plates, drawn by the weights of these."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rws_jax.programs.levels import Levels


def chosen(
    rng_key: jax.Array, log_w: Sequence[jax.Array], drawn: Sequence[dict[str, jax.Array]], levels: Levels
) -> dict[str, jax.Array]:
    """Choose from the local particles of a single outermost one, the outer levels first.

    Args:
      rng_key: JAX random key.
      log_w: log-weights of the particles of each level with all that is below, shape ``(L, ..., L, *batch)`` with an
        axis for each level of its chain.
      drawn: the draws of each level, shape ``(L, ..., L, *shape)``.
      levels: which levels there are.

    Returns:
      Site -> draw, of the shape that the site has in the programs.
    """
    event_dims, latents, indices = dict(levels.event_dims), dict(drawn[0]), [jnp.zeros((), int)]
    for number, level in enumerate(levels.all[1:], start=1):
        outer = [indices[other] for other in level.chain[:-1]]
        own_log_w = _taken(log_w[number], outer, 0)
        indices.append(jax.random.categorical(jax.random.fold_in(rng_key, number), own_log_w, axis=0))
        for name, values in drawn[number].items():
            latents[name] = _taken(values, [*outer, indices[number]], event_dims[name])
    return latents


def _taken(values: jax.Array, indices: Sequence[jax.Array], event_dim: int) -> jax.Array:
    """Take one element of each of the first axes; indices have the dims of plates, as values before their events."""
    for left, index in zip(range(len(indices), 0, -1), indices, strict=True):
        num_batch = values.ndim - left - event_dim
        own = index.reshape(index.shape[max(0, index.ndim - num_batch) :])  # dims further left are of size one
        own = own.reshape((1,) * (num_batch - own.ndim) + own.shape + (1,) * event_dim)
        own = jnp.broadcast_to(own, values.shape[left:])
        values = jnp.take_along_axis(values, own.reshape((1,) * left + own.shape), axis=0)[0]
    return values
