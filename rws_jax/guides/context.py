"""What a proposal may depend on: an embedding of the data, and of the latents drawn before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.core.numpyro_internals import ActivePlate
from rws_jax.guides.axes import SCAN, Laid, Leaf, Names, laid
from rws_jax.guides.networks import Tree, activation, affine, last_state, recurrent, total


@dataclass(frozen=True)
class Data:
    """Arguments, each mapped linearly to `hidden` numbers, and the network on their sum."""

    leaves: tuple[Leaf, ...]
    tree: Tree

    @property
    def plates(self) -> Names:
        """Plates along which there are data."""
        return frozenset().union(*(names for leaf in self.leaves for names in leaf.axes))

    def at(self, plates: Sequence[ActivePlate], num_dims: int) -> jax.Array:
        """The embedding for a site: of its own elements' data, the rest of which is pooled; ``(*batch, hidden)``."""
        own: list[Laid] = []
        others: dict[tuple[Names, ...], list[Laid]] = {}
        for leaf in (laid(leaf, plates, num_dims) for leaf in self.leaves):
            (others.setdefault(leaf.pooled, []) if leaf.pooled else own).append(leaf)
        embedded = []
        for pooled, members in (others or {(): []}).items():
            axes = tuple(range(num_dims, num_dims + len(pooled)))
            values = [leaf.value for leaf in members] + [jnp.expand_dims(leaf.value, axes) for leaf in own]
            embedded.append(self._pooled(self._network(total(values)), num_dims, pooled))
        return total(embedded)

    def _pooled(self, value: jax.Array, num_dims: int, pooled: tuple[Names, ...]) -> jax.Array:
        """The average over plates, those within others first; of a sequence, what a recurrent network makes of it."""
        for number, names in reversed(list(enumerate(pooled))):
            axis = num_dims + number
            if number < len(pooled) - 1:  # what differs between groups shows in no average over all of their members
                value = activation(affine(self.tree["groups"], value))
            if SCAN in names:
                value = last_state(self.tree["sequence"], jnp.moveaxis(value, axis, 0))
            else:
                value = jnp.mean(value, axis=axis)
        return value

    def _network(self, value: jax.Array) -> jax.Array:
        value = value + jnp.broadcast_to(self.tree["bias"], value.shape)
        return activation(affine(self.tree["hidden"], activation(value)))

    def along_scan(self, length: int, reverse: bool, backward: Tree | None) -> tuple[Any, Callable[[Any], "Data"]]:
        """Arrays for a scan to run along, and the data of one of its steps as a function of their slices.

        With the weights of a `backward` network, a step has a summary of the data from there to the end as well.
        """
        is_along = [any(SCAN in names and n == length for names, n in _axes(leaf)) for leaf in self.leaves]
        moved = [_time_first(leaf, length) for leaf, along in zip(self.leaves, is_along, strict=True) if along]
        rest = [leaf for leaf, along in zip(self.leaves, is_along, strict=True) if not along]
        if moved and backward is not None:
            moved.append(_summary_of_rest(moved, reverse, backward, self.tree["bias"]))

        def at_step(slices: list[jax.Array]) -> Data:
            own = [leaf._replace(value=value) for leaf, value in zip(moved, slices, strict=True)]
            return replace(self, leaves=(*rest, *own))

        return [leaf.value for leaf in moved], at_step


def _axes(leaf: Leaf) -> list[tuple[Names, int]]:
    return list(zip(leaf.axes, leaf.value.shape, strict=False))


def _time_first(leaf: Leaf, length: int) -> Leaf:
    """The leaf of all steps, whose axes are those of one step."""
    axis = next(axis for axis, (names, size) in enumerate(_axes(leaf)) if SCAN in names and size == length)
    rest = (*leaf.axes[:axis], *leaf.axes[axis + 1 :])
    return Leaf(leaf.name, rest, jnp.moveaxis(leaf.value, axis, 0))


def _summary_of_rest(leaves: list[Leaf], reverse: bool, backward: Tree, bias: jax.Array) -> Leaf:
    widest = max(leaves, key=lambda leaf: len(leaf.axes))
    along = []
    for leaf in leaves:
        missing = [1 + axis for axis, names in enumerate(widest.axes) if names not in leaf.axes]
        along.append(jnp.expand_dims(leaf.value, missing))
    value = total(along)
    inputs = activation(value + jnp.broadcast_to(bias, value.shape))

    def step(state: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = recurrent(backward["cell"], state, value)
        return state, state

    _, states = lax.scan(step, jnp.zeros_like(inputs[0]), inputs, reverse=not reverse)
    return Leaf("the rest", widest.axes, affine(backward["outputs"], states))


Plates = dict[int, str]  # names by dim, counted from the right and negative, as plates do


class Drawn(NamedTuple):
    """What has been drawn at a site, or in a scan, embedded, with the plates that its batch dims belong to."""

    name: str
    value: jax.Array  # (*batch, hidden)
    plates: Plates


def drawn_at(drawn: Sequence[Drawn], plates: Sequence[ActivePlate], num_dims: int, hidden: int) -> jax.Array:
    """The sum of what was drawn before a site; over plates that the site is not in, their average."""
    active = {plate.dim: plate.name for plate in plates}
    values = [jnp.zeros((*(1,) * num_dims, hidden))]
    for one in drawn:
        value = one.value
        for dim, name in one.plates.items():
            if active.get(dim) != name:
                value = jnp.mean(value, axis=dim - 1, keepdims=True)
        extra = value.ndim - 1 - num_dims
        values.append(value.reshape((1,) * -extra + value.shape) if extra < 0 else jnp.squeeze(value, range(extra)))
    return total(values)
