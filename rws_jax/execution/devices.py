"""Many devices: whatever the types of a mesh's axes, XLA divides the programs, and the state lives on all of them.

Programs are written for one device. On axes of type ``Explicit``, JAX's default, every contraction over the batch would
have to say how its result is to be sharded, which NumPyro's distributions do not; so they run on ``Auto`` axes.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rws_jax.core.errors import fail


def automatic(function: Callable) -> Callable:
    """The same function on automatic axes, where traced arguments have explicit ones; results are on all devices."""

    @functools.wraps(function)
    def on_automatic_axes(*args: Any, **kwargs: Any) -> Any:
        arrays = [leaf for leaf in jax.tree.leaves((args, kwargs)) if isinstance(leaf, jax.Array)]
        for array in arrays:
            mesh = jax.typeof(array).sharding.mesh
            if AxisType.Explicit in mesh.axis_types:
                replicated = NamedSharding(mesh, PartitionSpec())
                called = lambda both: function(*both[0], **both[1])  # keyword arguments would stay explicit
                return jax.sharding.auto_axes(called, out_sharding=replicated)((args, kwargs))
        return function(*args, **kwargs)

    return on_automatic_axes


def automatic_sharding(sharding: NamedSharding) -> NamedSharding:
    """The same one of automatic axes."""
    mesh = cast(Mesh, sharding.mesh)
    automatic_mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    return NamedSharding(automatic_mesh, sharding.spec)


@contextmanager
def on_automatic_axes(tree: Any) -> Iterator[Any]:
    """The same arrays, where they are, to be computed with outside of `jax.jit`; `automatic` does what is traced."""
    leaves = jax.tree.leaves(tree)
    explicit = [leaf.sharding for leaf in leaves if _is_explicit(leaf)]
    inside_of_set_mesh = bool(explicit) and not jax.sharding.get_abstract_mesh().empty
    if inside_of_set_mesh and any(isinstance(leaf, Tracer) for leaf in leaves):  # where another mesh cannot be set
        yield tree
        return
    place = lambda leaf: jax.device_put(leaf, automatic_sharding(leaf.sharding)) if _is_explicit(leaf) else leaf
    with jax.set_mesh(cast(Mesh, automatic_sharding(explicit[0]).mesh)) if inside_of_set_mesh else nullcontext():
        yield jax.tree.map(place, tree)


def replicate(tree: Any, args: Any, particle_sharding: NamedSharding | None) -> Any:
    """Put a copy on every device that arguments and particles are on: the first step finds what later ones find."""
    shardings = [leaf.sharding for leaf in jax.tree.leaves(args) if _is_placed(leaf)]
    shardings += [] if particle_sharding is None else [particle_sharding]
    if not shardings:
        return tree
    mesh = shardings[0].mesh
    for other in shardings[1:]:
        if other.device_set != shardings[0].device_set:
            fail(
                ValueError,
                "arguments and particles are on different devices",
                expected="one mesh for the shardings of all arguments and option 'particle_sharding'",
                found=f"{mesh} and {other.mesh}",
                hint="make one mesh of two axes, jax.make_mesh((2, 4), ('data', 'particles')), say",
            )
    # Not by device_put, which does not reach devices of other processes.
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)


def _is_explicit(leaf: Any) -> bool:
    return _is_placed(leaf) and AxisType.Explicit in leaf.sharding.mesh.axis_types


def _is_placed(leaf: Any) -> bool:
    """Whether this is a concrete array that somebody has put on a mesh."""
    is_concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
    return is_concrete and isinstance(leaf.sharding, NamedSharding)
