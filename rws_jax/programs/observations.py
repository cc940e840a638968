"""How the guide is shown dreamt data in sleep. Real data must never reach it in place of dreamt ones."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from numpyro.infer.autoguide import AutoGuide, AutoNormal

from rws_jax.checks import routes
from rws_jax.core.layers import ProgramFn, unwrapped
from rws_jax.core.sites import Trace, short_names
from rws_jax.programs.program import Arguments
from rws_jax.programs.stand_in import stand_in

# ``(simulated data by site, *args, **kwargs) -> (args, kwargs)`` of the guide, as in NumPyro's `vsbc_diagnostic`.
SimulatedDataToArgs = Callable[..., tuple[tuple, dict]]


def show_data(
    guide: ProgramFn,
    data: dict[str, jax.Array],
    args: tuple,
    kwargs: dict,
    rewrite: SimulatedDataToArgs | None,
    *,
    model_run: Trace | None = None,
    subsampled: bool = False,
    alone: bool = False,
) -> Arguments:
    """Put dreamt `data` in place of the real ones among the guide's arguments.

    By `rewrite` alone, if given. Else each site's data go to the argument named as the site; to the
    argument, or array within one, that is the very array that the site observes; and into the guide's argument
    ``observations``, a dict keyed by site. Each site needs one of these places.

    Args:
      guide: the guide, whose signature is inspected.
      data: dreamt values keyed by observed site.
      args: the model's real positional arguments, covariates among them.
      kwargs: the model's real keyword arguments.
      rewrite: option `simulated_data_to_args`, ``(data, *args, **kwargs) -> (args, kwargs)``, or None.
      model_run: the trace of the dream, which knows what its sites observe in reality.
      subsampled: whether the dream is of a minibatch.
      alone: whether reality may have other sites than the dream, as Python branches on what is drawn.

    Returns:
      The arguments to call the guide with.

    Raises:
      ValueError: if there is no place, data and covariate are one array, or dreamt and real data differ in shape.
      TypeError: if `rewrite` does not return such a pair.
    """
    if rewrite is not None:
        pair = rewrite(data, *args, **kwargs)
        routes.check_pair(pair)
        return Arguments(tuple(pair[0]), dict(pair[1]))
    if reads_no_data(guide):
        return Arguments(args, kwargs)
    signature, bound = _bound(guide, args, kwargs)
    real = dict(bound.arguments)
    sites = model_run or {}
    places = _find_places(signature, real, _observed(data, sites))
    if places.none_for:
        routes.fail_unrouted(unwrapped(guide), sorted(data), [str(p) for p in signature.parameters.values()])
    for name in data if subsampled and places.observations is not None and not real.get("observations") else ():
        routes.check_minibatch(name, data[name], args, kwargs)

    def shown(name: str, real: Any) -> jax.Array:
        if real is None:
            return data[name]
        routes.check_shape(name, data[name], real)
        return stand_in(sites[name], data[name], real) if name in sites else data[name]

    leaves, structure = jax.tree.flatten(real)
    new = [shown(places.leaves[i], leaf) if i in places.leaves else leaf for i, leaf in enumerate(leaves)]
    bound.arguments |= jax.tree.unflatten(structure, new)
    bound.arguments |= {argument: shown(name, real.get(argument)) for argument, name in places.arguments.items()}
    if places.observations is not None:
        given = real.get("observations") or {}
        entries = {key: shown(name, given.get(key)) for key, name in places.observations.items()}
        rest = {} if alone else bound.arguments.get("observations") or {}  # where sites are the same, it is no data
        bound.arguments["observations"] = rest | entries
    return Arguments(bound.args, bound.kwargs)


def reads_no_data(guide: ProgramFn) -> bool:
    """Whether this is an automatic guide that no data are shown to; others than `AutoNormal` are refused."""
    bare = unwrapped(guide)
    if isinstance(bare, AutoGuide) and not isinstance(bare, AutoNormal):
        routes.fail_joint(bare)
    return isinstance(bare, AutoNormal)


def describe_places(
    guide: ProgramFn, data: dict[str, jax.Array], args: tuple, kwargs: dict, model_run: Trace
) -> dict[str, list[str]]:
    """In words, the places among the guide's arguments where it is shown the data of each site."""
    signature, bound = _bound(guide, args, kwargs)
    real = dict(bound.arguments)
    places = _find_places(signature, real, _observed(data, model_run))
    paths = [path for path, _ in jax.tree.leaves_with_path(real)]
    found: dict[str, list[str]] = {name: [] for name in data}
    for i, name in places.leaves.items():
        found[name].append(f"argument {paths[i][0].key!r}{jax.tree_util.keystr(paths[i][1:])}")
    for argument, name in places.arguments.items():
        found[name].append(f"argument {argument!r}")
    for key, name in (places.observations or {}).items():
        found[name].append(f"observations[{key!r}]")
    return {name: list(dict.fromkeys(where)) for name, where in found.items()}


def _bound(guide: ProgramFn, args: tuple, kwargs: dict) -> tuple[inspect.Signature, inspect.BoundArguments]:
    signature = inspect.signature(guide)
    try:
        return signature, signature.bind_partial(*args, **kwargs)
    except TypeError as error:
        routes.fail_unbound(unwrapped(guide), str(error), signature)


def _observed(data: dict[str, jax.Array], sites: Trace) -> dict[str, Any]:
    """What each site observes in reality, as far as it is known."""
    return {name: sites[name].get("real") if name in sites else None for name in data}


class _Places(NamedTuple):
    """Where dreams go."""

    arguments: dict[str, str]  # arguments of the guide that are data, and of which site
    leaves: dict[int, str]  # arrays, counted through all arguments
    observations: dict[str, str] | None  # keys of `observations`, if the guide takes a dict of them
    none_for: list[str]  # sites that have no place


def _find_places(signature: inspect.Signature, real: dict[str, Any], observed: dict[str, Any]) -> _Places:
    """Find places by names and, for what sites are known to observe, by identity."""
    by_name = {p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    names, given = short_names(observed), real.get("observations", {})
    takes_dict = "observations" in by_name and (given is None or isinstance(given, dict))
    keys = {name if name in (given or {}) or names[name] not in (given or {}) else names[name]: name for name in names}
    places = _Places({}, {}, keys if takes_dict else None, [])
    argument_of = [path[0].key for path, _ in jax.tree.leaves_with_path(real)]
    for name, array in observed.items():
        same = [i for i, leaf in enumerate(jax.tree.leaves(real)) if leaf is array and array is not None]
        own = [i for i in same if argument_of[i] == names[name]]
        is_named = names[name] in real or (names[name] in by_name and not takes_dict)
        if is_named and not (own and real[names[name]] is not array):
            places.arguments[names[name]] = name
        same = own or [i for i in same if argument_of[i] not in names.values()] or same
        # The same array in another argument than that of its name is a covariate.
        if own or len(same) == 1:
            for i in same:
                routes.check_single_site(name, places.leaves.get(i), argument_of[i])
                places.leaves[i] = name
        elif names[name] not in places.arguments and not takes_dict:
            if same:
                routes.fail_ambiguous(name, [argument_of[i] for i in same])
            places.none_for.append(name)
    return places
