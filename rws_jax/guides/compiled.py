"""The guide that is compiled from a model: a callable of the model's signature."""

import inspect
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.handlers import block, seed

from rws_jax.core.layers import ProgramFn
from rws_jax.core.trees import is_known, is_traced
from rws_jax.guides.dreams import Dreams, dream
from rws_jax.guides.embedding import Embedding, data_of, own_networks
from rws_jax.guides.initial import Architecture
from rws_jax.guides.leaves import check_readable, number_leaves, signature_of
from rws_jax.guides.networks import Tree
from rws_jax.guides.options import GuideOptions
from rws_jax.guides.proposing import Guide, proposing
from rws_jax.programs.held import held

_NUM_KEPT = 4


class CompiledGuide:
    """What `compile_guide` returns.

    It holds no weights: these are the value of its `numpyro.param` site, and of those of the user's networks.
    """

    def __init__(self, model: ProgramFn, options: GuideOptions) -> None:
        self.model, self.options = model, options
        self.__name__ = f"compile_guide({getattr(model, '__name__', type(model).__name__)})"
        self.__doc__ = "An amortised guide, compiled from its model; see `rws_jax.compile_guide`."
        self._of_model = signature_of(model)
        self.__signature__ = _with_observations(self._of_model) if options.data_sites({}) else self._of_model
        self._found: list[tuple[Any, dict[str, Any], Architecture]] = []
        self._kept: set[str] = set()  # sites that keep their priors, each said once

    def __getstate__(self) -> dict[str, Any]:
        """Without what has been dreamt, which holds data: copies dream anew."""
        return self.__dict__ | {"_found": []}

    def __repr__(self) -> str:
        """The model that it is of."""
        return self.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Draw the latents of the model, given what its arguments say.

        Args:
          *args: those of the model.
          **kwargs: those of the model.
        """
        options = self.options
        arguments = dict(self.__signature__.bind(*args, **kwargs).arguments)
        leaves = number_leaves(arguments)
        embedding = None
        if options.embed is None:
            check_readable(arguments, leaves)
        else:
            embedding = Embedding(options.embed, f"{options.prefix}/embed", self.__signature__, arguments)
        if "observations" not in self._of_model.parameters:
            kwargs.pop("observations", None)  # which the guide alone takes
        initial = partial(self._initial, args, kwargs, leaves, embedding)
        tree: Any = numpyro.param(options.prefix, initial)
        data = (data_of if embedding is None else embedding.data_of)(tree["data"], leaves)
        networks = own_networks(options.networks, options.prefix, options.hidden)
        observed = options.data_sites(arguments)
        guide = Guide(tree, options.hidden, options.components, self._keep, networks, observed)
        with held(), proposing(None, guide, data):
            self.model(*args, **kwargs)

    def _initial(
        self,
        args: tuple,
        kwargs: dict[str, Any],
        leaves: dict[str, Any],
        embedding: Embedding | None,
        rng_key: jax.Array,
    ) -> Tree:
        """Make the first weights, once a handler asks for them."""
        architecture = self._architecture(args, kwargs, leaves)
        if embedding is None:
            return architecture.tree(rng_key)
        with block(), seed(rng_seed=0):
            vectors = jax.eval_shape(lambda leaves: embedding.values(architecture.embedded, leaves), leaves)
        return architecture.tree(rng_key, vectors.shape[-1])

    def _architecture(self, args: tuple, kwargs: dict[str, Any], leaves: dict[str, Any]) -> Architecture:
        """The networks for these arguments; what has been dreamt of some holds for others that differ in data alone."""
        options, leaf_ids = self.options, set(map(id, leaves.values()))
        others = [leaf for leaf in jax.tree.leaves((args, kwargs)) if id(leaf) not in leaf_ids]
        kind = jax.tree.structure((args, kwargs)), others
        for known_kind, known, architecture in self._found:
            if kind == known_kind and _are_alike(known, leaves, architecture.dreams):
                return architecture
        own_args, own_kwargs = _distinct((args, kwargs), leaf_ids)
        own_leaves = leaves | number_leaves(dict(self._of_model.bind(*own_args, **own_kwargs).arguments))
        observed = set(options.data_sites({}))
        dreams = dream(self.model, own_args, own_kwargs, own_leaves, options.components, observed)
        architecture = Architecture(dreams, leaves, options)
        if is_known((args, kwargs, list(dreams.values.values()))):
            self._found = [*self._found[1 - _NUM_KEPT :], (kind, leaves, architecture)]
        return architecture

    def _keep(self, name: str, why: str) -> None:
        if name not in self._kept:
            self._kept.add(name)
            warnings.warn(
                f"the compiled guide draws latent site {name!r} from its prior, as {why}: weights stay right, and"
                " nothing is learnt there",
                stacklevel=2,
            )


def _distinct(arguments: Any, leaf_ids: set[int]) -> Any:
    """Arguments in which each array is an object of its own, as which of them is observed shows by identity."""

    def own(leaf: Any) -> Any:
        if id(leaf) not in leaf_ids or not isinstance(leaf, jax.Array | np.ndarray):
            return leaf
        if is_traced(leaf):
            return jnp.array(leaf)
        with jax.ensure_compile_time_eval():  # Python may have to know it
            return jnp.array(leaf)

    return jax.tree.map(own, arguments)


def _with_observations(signature: inspect.Signature) -> inspect.Signature:
    """The signature with one more argument, for the values of data sites that the model draws itself."""
    parameters = list(signature.parameters.values())
    if "observations" in signature.parameters:
        return signature
    own = inspect.Parameter("observations", inspect.Parameter.KEYWORD_ONLY, default=None)
    position = len(parameters) - (bool(parameters) and parameters[-1].kind == inspect.Parameter.VAR_KEYWORD)
    return signature.replace(parameters=[*parameters[:position], own, *parameters[position:]])


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
