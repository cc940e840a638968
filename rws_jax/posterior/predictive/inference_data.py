"""Arrays with names of their axes, as ArviZ takes them, by the interface that it has from 1.0 on, or before."""

import inspect
import warnings
from collections.abc import Container, Iterable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from rws_jax.posterior.samples.weighted_draw import Dims


class Group(NamedTuple):
    """Arrays by name, and the plate of each of their axes but that of draws; None for axes that are in no plate."""

    values: Mapping[str, Any]
    dims: dict[str, Dims]

    def beside(self, other: "Group") -> "Group":
        """Both together."""
        return Group({**self.values, **other.values}, self.dims | other.dims)

    def without(self, names: Container[str]) -> "Group":
        """All but some."""
        return Group({name: value for name, value in self.values.items() if name not in names}, self.dims)


def inference_data(
    groups: dict[str, Group],
    *,
    observed_data: Group,
    per_unit: Group,
    coords: Mapping[str, Any],
    notes: Mapping[str, Mapping[str, str]],
) -> Any:
    """Build what ArviZ works on.

    Args:
      groups: arrays of shape ``(draws, ...)`` by the name of the group, ``sample_stats`` among them.
      observed_data: arrays without draws.
      per_unit: arrays without draws that belong to ``sample_stats``.
      coords: the indices of each plate.
      notes: what the attributes of a group say besides.

    Returns:
      `arviz.InferenceData` or, from ArviZ 1.0 on, `xarray.DataTree`.
    """
    groups = {name: group for name, group in groups.items() if group.values}
    everything = [*groups.values(), observed_data]
    taken = {"chain", "draw"}.union(*(group.values for group in everything), per_unit.values)
    dims: dict[str, list[str]] = {}
    for group in everything:
        for name in group.values:
            names = _names(name, group.dims[name], taken)
            dims[name] = max(names, dims.get(name, []), key=len)  # log densities have no axes of events
    tree = {name: {site: _array(value)[None] for site, value in group.values.items()} for name, group in groups.items()}
    if observed_data.values:
        tree["observed_data"] = {site: _array(value) for site, value in observed_data.values.items()}
    found = _from_dict(tree, dims, {_free(name, taken): np.asarray(index) for name, index in coords.items()})
    for name in tree:
        found[name].attrs.update(inference_library="rws_jax", **notes.get(name, {}))
    data_array = import_module("xarray").DataArray
    for name, value in per_unit.values.items():
        found["sample_stats"][name] = data_array(_array(value), dims=_names(name, per_unit.dims[name], taken))
    return found


def note_of_own_latents(log_likelihood: Group, latents: Group, units: Dims) -> dict[str, str]:
    """An attribute that names the observed sites whose every datum has latents of its own, if there are any.

    Such a datum is in no plate that one of the latents is not in as well. What ``obs_mask`` leaves unobserved is a
    latent in place of a datum, and none of its own.
    """
    data = {name: set(log_likelihood.dims[name]) for name in log_likelihood.values}
    in_place = {f"{name.removesuffix('_observed')}_unobserved" for name in data if name.endswith("_observed")}
    plates = {name: set(latents.dims[name]) for name in latents.values if name not in in_place}
    own = sorted(name for name, of in data.items() if None not in of and any(of <= other for other in plates.values()))
    if not own:
        return {}
    if all(data[name] == set(units) for name in own):
        instead = "With these parameters it is the sum of sample_stats.log_evidence, exactly"
    else:
        instead = "Compare models by sample_stats.log_evidence"
    text = f"Each datum of {own} has latents of its own, and arviz.loo is far too optimistic of it. {instead}."
    return {"leave_one_out": text}


def _names(variable: str, dims: Dims, taken: Iterable[str]) -> list[str]:
    """The name of each axis: that of its plate, or else such as ArviZ before 1.0 gives."""
    names: list[str] = []
    for axis, plate in enumerate(dims):
        names.append(f"{variable}_dim_{axis}" if plate is None else _free(plate, {*taken, *names}))
    return names


def _free(plate: str, taken: Iterable[str]) -> str:
    """The name of a plate, unless a variable has it: xarray would take this for the coordinates of the axis."""
    return f"{plate}_plate" if plate in taken else plate


def _array(value: Any) -> np.ndarray:
    """An array of a type of NumPy's own; bfloat16 is none."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _from_dict(
    tree: dict[str, dict[str, np.ndarray]], dims: dict[str, list[str]], coords: dict[str, np.ndarray]
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces the next version when it is imported
        for module in ("arviz", "arviz_base"):
            try:
                from_dict = import_module(module).from_dict
                break
            except ImportError as error:
                cause = error
        else:
            message = 'to_arviz needs ArviZ: pip install "rws_jax[posterior]"'
            raise ImportError(message, name="arviz") from cause
    if "posterior" in inspect.signature(from_dict).parameters:  # before 1.0
        return from_dict(**tree, dims=dims, coords=coords)
    return from_dict(tree, dims=dims, coords=coords)
