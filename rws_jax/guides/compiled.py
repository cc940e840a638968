"""The guide that is compiled from a model: a callable of the model's signature."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from rws_jax.core.layers import ProgramFn
from rws_jax.core.trees import is_known
from rws_jax.guides.axes import Leaf, parsed
from rws_jax.guides.context import Data
from rws_jax.guides.dreams import Dreams, dream
from rws_jax.guides.initial import Architecture
from rws_jax.guides.leaves import as_floats, number_leaves, signature_of
from rws_jax.guides.networks import Tree, standard
from rws_jax.guides.proposing import Guide, proposing
from rws_jax.programs.held import held

_NUM_KEPT = 4


class CompiledGuide:
    """What `compile_guide` returns. It has no weights: these are the value of one `numpyro.param` site."""

    def __init__(
        self,
        model: ProgramFn,
        *,
        hidden: int,
        components: int,
        autoregressive: bool,
        data_plates: dict[str, tuple[str | None, ...]],
        prefix: str,
    ) -> None:
        self.model, self.hidden, self.components, self.autoregressive = model, hidden, components, autoregressive
        self.data_plates, self.prefix = data_plates, prefix
        self.__signature__ = signature_of(model)
        self.__name__ = f"compile_guide({getattr(model, '__name__', type(model).__name__)})"
        self._found: list[tuple[Any, dict[str, Any], Architecture]] = []
        self._said: set[str] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Draw the latents of the model, given what its arguments say."""
        leaves = number_leaves(self.__signature__, args, kwargs)
        tree: Any = numpyro.param(self.prefix, lambda rng_key: self._architecture(args, kwargs, leaves).tree(rng_key))
        guide = Guide(tree, self.hidden, self.components, self._keep)
        with held(), proposing(None, guide, self._data(tree["data"], leaves)):
            self.model(*args, **kwargs)

    def _data(self, tree: Tree, leaves: dict[str, Any]) -> Data:
        embedded = []
        for key, of_argument in tree["arguments"].items():
            name, axes = parsed(key)
            value = as_floats(leaves[name])
            value = value.reshape(*value.shape[: len(axes)], -1)
            embedded.append(Leaf(name, axes, standard(of_argument, value) @ of_argument["weights"]))
        return Data(tuple(embedded), tree)

    def _architecture(self, args: tuple, kwargs: dict[str, Any], leaves: dict[str, Any]) -> Architecture:
        """Of these arguments; what has been dreamt of some holds for all others that differ in their data alone."""
        leaf_ids = set(map(id, leaves.values()))
        others = [leaf for leaf in jax.tree.leaves((args, kwargs)) if id(leaf) not in leaf_ids]
        kind = jax.tree.structure((args, kwargs)), others
        for known_kind, known, architecture in self._found:
            if kind == known_kind and _are_alike(known, leaves, architecture.dreams):
                return architecture
        dreams = dream(self.model, args, kwargs, leaves, self.components, set())
        architecture = Architecture(dreams, leaves, self.data_plates, self.hidden, self.autoregressive)
        if is_known((args, kwargs, list(dreams.values.values()))):
            self._found = [*self._found[1 - _NUM_KEPT :], (kind, leaves, architecture)]
        return architecture

    def _keep(self, name: str, why: str) -> None:
        if name in self._said:
            return
        self._said.add(name)
        warnings.warn(f"{name} keeps prior: {why}", stacklevel=2)


def _are_alike(known: dict[str, Any], leaves: dict[str, Any], dreams: Dreams) -> bool:
    """Whether arguments have one kind, and equal values but for data that are dreamt."""
    kinds = [{name: jax.typeof(jnp.asarray(leaf)) for name, leaf in each.items()} for each in (known, leaves)]
    if kinds[0] != kinds[1]:
        return False
    rest = [name for name in leaves if ("data", name) not in dreams.values]
    return all(
        leaves[name] is known[name] or (is_known(leaves[name]) and np.array_equal(leaves[name], known[name]))
        for name in rest
    )
