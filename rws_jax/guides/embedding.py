"""What a guide reads, embedded: each of the numbers among its arguments, or what the user's network makes of them."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rws_jax.checks.guides import check_observations
from rws_jax.core.errors import fail
from rws_jax.guides.axes import Leaf, Names, parsed
from rws_jax.guides.context import Data
from rws_jax.guides.leaves import as_floats, with_numbers
from rws_jax.guides.modules import as_function, vector_of
from rws_jax.guides.networks import Tree, embedded_argument


def data_of(tree: Tree, leaves: dict[str, Any]) -> Data:
    """Arguments in standard units, each mapped linearly."""
    known = {parsed(key)[0] for key in tree["arguments"]}
    check_observations([name for name in leaves if name.startswith("observations[") and name not in known])
    arguments = []
    for key, of_argument in tree["arguments"].items():
        name, axes = parsed(key)
        value = as_floats(_leaf_of(name, leaves))
        value = value.reshape(*value.shape[: len(axes)], -1)
        if value.shape[-1] != len(of_argument["shift"]):
            _fail_shape(name, jnp.shape(leaves[name]), len(axes), len(of_argument["shift"]))
        arguments.append(Leaf(name, axes, embedded_argument(of_argument, value)))
    return Data(tuple(arguments), tree)


class Embedding:
    """A network of the user's, called with the arguments of one datum."""

    def __init__(self, module: Any, name: str, signature: inspect.Signature, arguments: dict[str, Any]) -> None:
        self.module, self.name, self.signature, self.arguments = module, name, signature, arguments

    def data_of(self, tree: Tree, leaves: dict[str, Any]) -> Data:
        """What the network makes of the arguments, mapped linearly."""
        ((key, of_embedding),) = tree["arguments"].items()
        along = next((axes for axes in _axes_in(key).values() if axes), ())
        return Data((Leaf("embed", along, self.values(key, leaves) @ of_embedding["weights"]),), tree)

    def values(self, key: str, leaves: dict[str, Any]) -> jax.Array:
        """Vectors, one for each datum: of a row of all arguments that have the axis of data, as `key` says."""
        rows = {name: jnp.asarray(_leaf_of(name, leaves)) for name, axes in _axes_in(key).items() if axes}
        first = {name: leaf[0] for name, leaf in rows.items()}
        function = as_function(self.name, self.module, *self._bound(first).args, **self._bound(first).kwargs)

        def of_datum(row: dict[str, jax.Array]) -> jax.Array:
            bound = self._bound(row)
            return vector_of(function, "option 'embed'", *bound.args, **bound.kwargs)

        return jax.vmap(of_datum)(rows) if rows else of_datum({})

    def _bound(self, row: dict[str, Any]) -> inspect.BoundArguments:
        bound = self.signature.bind_partial()
        bound.arguments |= with_numbers(self.arguments, row)
        return bound


def _axes_in(key: str) -> dict[str, tuple[Names, ...]]:
    """The axis of data of each argument, from the key of an embedding."""
    return dict(map(parsed, key.split("; "))) if key else {}


def own_networks(networks: dict[str, Any], prefix: str, hidden: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """The user's networks for proposals of single sites: each maps `hidden` numbers to the outputs of its site."""

    def along_batch(site: str, function: Callable) -> Callable[[jax.Array], jax.Array]:
        of_element = lambda value: vector_of(function, f"networks[{site!r}]", value)

        def apply(value: jax.Array) -> jax.Array:
            outputs = jax.vmap(of_element)(value.reshape(-1, hidden))
            return outputs.reshape(*value.shape[:-1], outputs.shape[-1])

        return apply

    first = jnp.zeros(hidden)
    return {site: along_batch(site, as_function(f"{prefix}/{site}", net, first)) for site, net in networks.items()}


def _leaf_of(name: str, leaves: dict[str, Any]) -> Any:
    if name not in leaves:
        fail(
            ValueError,
            f"the compiled guide reads {name!r}, which is not among its arguments",
            expected="the arguments that it was initialised with",
            found=f"{sorted(leaves)}",
            hint="call it as init was called; data that may be missing are NaN, and not left out",
        )
    return leaves[name]


def _fail_shape(name: str, shape: tuple[int, ...], num_axes: int, expected: int) -> None:
    fail(
        ValueError,
        f"argument {name!r} of the compiled guide has another shape than at init",
        expected=f"{expected} numbers beyond its first {num_axes} axes, which belong to plates and may change in size",
        found=f"shape {shape}",
        hint="a size may change along the axis of a plate: pass data_plates={'x': ('plate',)}, say, if shapes do not"
        " tell which that is; else initialise the guide anew",
    )
