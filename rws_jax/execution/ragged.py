"""Arrays by name that one particle has and another may not, where Python branches on what is drawn: latents, say.

What a particle computes may have such nodes anywhere in its tree. Executors lay them side by side by filling them up.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.core.errors import fail
from rws_jax.core.trees import is_float


@partial(jax.tree_util.register_dataclass, data_fields=["values", "present"], meta_fields=["kinds"])
@dataclass(frozen=True)
class Ragged:
    """Values by name, of one particle or of many.

    Where particles differ, values are filled up to the largest shape, by NaN or the least number that their type has,
    and `present` says which numbers are there. It has no entry for a name of which all are.
    """

    values: dict[str, jax.Array]
    present: dict[str, jax.Array]  # truth values of the same shapes
    kinds: tuple[tuple[str, Hashable], ...] = ()  # what is known of each name, the same for all particles

    @classmethod
    def of(cls, values: dict[str, jax.Array], kinds: Mapping[str, Hashable]) -> "Ragged":
        """What one particle has."""
        return cls(values, {}, tuple(kinds.items()))


class Layout(NamedTuple):
    """The tree that numbers and ragged nodes were taken out of."""

    structure: Hashable
    is_ragged: tuple[bool, ...]

    def filled(self, numbers: Iterable[Any], ragged: Iterable[Ragged]) -> Any:
        """The tree with these numbers and ragged nodes in their places."""
        numbers, ragged = iter(numbers), iter(ragged)
        leaves = [next(ragged) if is_one else next(numbers) for is_one in self.is_ragged]
        return jax.tree.unflatten(self.structure, leaves)


def split(tree: Any) -> tuple[list[Any], list[Ragged], Layout]:
    """The numbers of a tree and its ragged nodes, each in order."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_ragged)
    places = tuple(map(_is_ragged, leaves))
    numbers = [leaf for leaf, is_one in zip(leaves, places, strict=True) if not is_one]
    return numbers, [leaf for leaf, is_one in zip(leaves, places, strict=True) if is_one], Layout(structure, places)


def stacked(parts: Sequence[Ragged]) -> Ragged:
    """Single particles side by side."""
    return _joined(parts, [()] * len(parts), jnp, lambda arrays: jnp.stack(list(arrays)))


def scattered(parts: Sequence[Ragged], members: Sequence[np.ndarray]) -> Ragged:
    """Groups of particles, each put where its members are among all particles; on the host."""
    order = np.argsort(np.concatenate(members))
    join = lambda arrays: np.concatenate(list(arrays))[order]
    return _joined(parts, [(len(group),) for group in members], np, join)


def chosen(parts: Sequence[Ragged], choose: Callable[[Iterable[Any]], Any]) -> Ragged:
    """One of several, which `choose` takes out of arrays of one shape."""
    return _joined(parts, [()] * len(parts), jnp, choose)


def _joined(
    parts: Sequence[Ragged], leads: Sequence[tuple[int, ...]], xp: Any, join: Callable[[Iterable[Any]], Any]
) -> Ragged:
    """Fill up, by functions of the array library `xp`, and join; `leads` are the axes of particles of each part."""
    kinds: dict[str, Hashable] = {}
    for part in parts:
        for name, kind in part.kinds:
            if kinds.setdefault(name, kind) != kind:
                _fail_kinds(name, kinds[name], kind)
    values, present = {}, {}
    for name in dict.fromkeys(name for part in parts for name in part.values):
        own = [
            jnp.shape(part.values[name])[len(lead) :] if name in part.values else None
            for part, lead in zip(parts, leads, strict=True)
        ]
        shape = _largest(name, {s for s in own if s is not None})
        dtype = jnp.result_type(*[part.values[name] for part in parts if name in part.values])
        fill = missing(dtype)
        widened = partial(_widened, xp=xp, shape=shape)
        values[name] = join(
            widened(part.values.get(name), lead, dtype=dtype, fill=fill)
            for part, lead in zip(parts, leads, strict=True)
        )
        if any(s != shape or name in part.present for s, part in zip(own, parts, strict=True)):
            present[name] = join(
                widened(_presence(part, name, xp), lead, dtype=bool, fill=False)
                for part, lead in zip(parts, leads, strict=True)
            )
    return Ragged(values, present, tuple(kinds.items()))


def missing(dtype: Any) -> Any:
    """What stands where there is no number: NaN, the least integer, or False."""
    if is_float(jnp.zeros((), dtype)):
        return jnp.nan
    return False if jnp.issubdtype(dtype, jnp.bool_) else jnp.iinfo(dtype).min


def _presence(part: Ragged, name: str, xp: Any) -> Any:
    if name not in part.values:
        return None
    return part.present.get(name, xp.ones(jnp.shape(part.values[name]), bool))


def _widened(value: Any, lead: tuple[int, ...], *, xp: Any, shape: tuple[int, ...], dtype: Any, fill: Any) -> Any:
    """A value of the largest shape; None is one that is not there at all."""
    if value is None:
        return xp.full((*lead, *shape), fill, dtype)
    lacking = [wide - size for wide, size in zip(shape, jnp.shape(value)[len(lead) :], strict=True)]
    width = [(0, 0)] * len(lead) + [(0, number) for number in lacking]
    value = xp.asarray(value, dtype)
    return xp.pad(value, width, constant_values=fill) if any(lacking) else value


def _largest(name: str, shapes: set[tuple[int, ...]]) -> tuple[int, ...]:
    if len({len(shape) for shape in shapes}) > 1:
        fail(
            ValueError,
            f"latent site {name!r} has different numbers of axes on different paths",
            expected="values that differ in their sizes alone",
            found=" and ".join(map(str, sorted(shapes))),
            hint="give sites of different kinds different names",
        )
    return tuple(map(max, zip(*shapes, strict=True)))


def _fail_kinds(name: str, kind: Hashable, other: Hashable) -> None:
    fail(
        ValueError,
        f"latent site {name!r} differs between paths",
        expected=f"{kind}",
        found=f"{other}",
        hint="give sites of different kinds different names",
    )


def _is_ragged(node: Any) -> bool:
    return isinstance(node, Ragged)
