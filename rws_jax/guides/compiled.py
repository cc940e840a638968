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
from rws_jax.guides.dreams import dream
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
        self._found: list[tuple[Any, Architecture]] = []
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
        """Of these arguments, from dreams that are dreamt once for each."""
        for known, architecture in self._found:
            if _same(known, (args, kwargs)):
                return architecture
        dreams = dream(self.model, args, kwargs, leaves, self.components, set())
        architecture = Architecture(dreams, leaves, self.data_plates, self.hidden, self.autoregressive)
        if is_known(leaves):
            self._found = [*self._found[1 - _NUM_KEPT :], ((args, kwargs), architecture)]
        return architecture

    def _keep(self, name: str, why: str) -> None:
        if name in self._said:
            return
        self._said.add(name)
        warnings.warn(f"{name} keeps prior: {why}", stacklevel=2)


def _same(known: Any, given: Any) -> bool:
    (leaves, structure), (others, other_structure) = map(jax.tree.flatten, (known, given))
    if structure != other_structure:
        return False
    return all(one is other or (is_known(other) and np.array_equal(one, other)) for one, other in zip(leaves, others, strict=True))
