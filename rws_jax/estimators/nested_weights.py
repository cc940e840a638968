"""Log-weights of nested particles in, numbers out. Arrays only.

A tree of levels: each particle of a level has, for each element of the plates of a level below it, L particles of that
level. Arrays of a level have shape ``(particles, *data, L, ..., L, *batch)``: one axis of size L for each level that
the level is below, itself the last, and `num_dims` axes of plates, of size one where it has no such plate.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rws_jax.estimators import weights


class LevelAxes(Protocol):
    """What is known of a level: where it hangs in the tree, and what is summed on the way up."""

    @property
    def parent(self) -> int | None:
        """The number of the level above; None for the root."""
        ...

    @property
    def summed(self) -> tuple[int, ...]:
        """Axes, from the right, of the plates that it does not share with the level above."""
        ...


class NestedWeights(NamedTuple):
    """Arrays of each level."""

    log_w: list[jax.Array]  # of each particle with all that is below it, in nats
    w: list[jax.Array]  # normalised: over the root's particles, and below within each particle further out
    baseline: list[jax.Array]  # coefficients for which the sum of ``baseline * grad log q`` has expectation zero


def totals(own: Sequence[jax.Array], levels: Sequence[LevelAxes], num_dims: int) -> list[jax.Array]:
    r"""Log-weights of each particle with all that is below it: its own, and a sum over the elements below of

    .. math:: \log \hat Z_i = \log \frac1L \sum_l \exp(\log w_{il}) .

    Args:
      own: log-weights of each level's own sites, in nats.
      levels: parents before their children.
      num_dims: how many axes of plates arrays have.

    Returns:
      For each level an array of the shape of its own log-weights, or broadcast against those of levels below it.
    """
    log_w = list(own)
    for number in range(len(levels) - 1, 0, -1):
        parent = levels[number].parent
        assert parent is not None
        log_w[parent] = log_w[parent] + _summed(weights.bound(log_w[number], -(num_dims + 1)), levels[number])
    return log_w


def nested_weights(own: Sequence[jax.Array], levels: Sequence[LevelAxes], num_dims: int) -> NestedWeights:
    r"""Weights and baselines of all particles of all levels.

    A local particle's weight is the product of its own, normalised over the L of its element, and of those of the
    particles around it. Its baseline is 1/K for the root and 1/(K L) below where, without the particle itself, there
    still is a particle of non-zero weight: the coefficient does not depend on the particle's own draw, also if random
    numbers are common to all K, and is zero in dead units.

    Arguments are those of `totals`.
    """
    log_w = totals(own, levels, num_dims)
    w, baseline = [weights.normalise(log_w[0])], [weights.score_baseline(log_w[0], jnp.zeros_like(log_w[0]))]
    # For each level: whether all around a particle's element is alive, and the share 1/(K L ... L) of one particle.
    # If another particle of an element is alive, so is the element: whether it is does not depend on the particle.
    around, share = [jnp.ones((), bool)], [1.0 / log_w[0].shape[0]]
    for number, level in enumerate(levels[1:], start=1):
        parent, axis = level.parent, -(num_dims + 1)
        assert parent is not None
        w.append(jnp.expand_dims(w[parent], axis) * weights.normalise(log_w[number], axis))
        is_whole = _num_dead(parent, own, log_w, levels, num_dims) == 0
        around.append(jnp.expand_dims(around[parent] & is_whole, axis))
        share.append(share[parent] / log_w[number].shape[axis])
        others_alive = weights.num_others_alive(log_w[number], axis) > 0
        baseline.append(share[number] * (around[number] & others_alive))
    return NestedWeights(log_w, w, baseline)


def _num_dead(
    number: int, own: Sequence[jax.Array], log_w: list[jax.Array], levels: Sequence[LevelAxes], num_dims: int
) -> jax.Array:
    """How much of each particle is dead: its own draw, and elements below it."""
    count = (own[number] == -jnp.inf).astype(int)
    for child, level in enumerate(levels):
        if level.parent == number:
            is_dead = ~weights.alive(log_w[child], -(num_dims + 1))
            count = count + _summed(is_dead.astype(int), level)
    return count


def _summed(x: jax.Array, level: LevelAxes) -> jax.Array:
    """Sum over the elements of a level, for each element of the one above."""
    return jnp.sum(x, axis=level.summed, keepdims=True)
