"""The text of `describe`: what traces of model and guide say of units, sites, parameters and dreams.

Runs nothing, and shows nothing of what has been drawn.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jax.core import Tracer

from rws_jax.checks.routes import name_of
from rws_jax.checks.static import static_arguments
from rws_jax.core.errors import first_line, is_own
from rws_jax.core.layers import ProgramFn, unwrapped
from rws_jax.core.sites import (
    Trace,
    constant_sites,
    data_sites,
    factor_sites,
    latent_sites,
    mutable_sites,
    num_elements,
    sample_sites,
)
from rws_jax.core.supports import mask_of_values
from rws_jax.core.text import labelled, listed
from rws_jax.core.trees import is_known
from rws_jax.programs.density import Units
from rws_jax.programs.program import Arguments
from rws_jax.training.pilot import PilotRuns
from rws_jax.training.site_tables import data_table, latent_table, param_table

Lines = Iterator[tuple[str, str]]  # a label, and what is said of it


class Weighing(NamedTuple):
    """What wake gives weights to."""

    units: Units
    num_data: int | None  # None: programs are of all data
    alone: bool  # whether each datum is taken as a whole, whatever its plates


class Dreams(NamedTuple):
    """What sleep dreams, and where the guide reads it: nowhere, if it reads no data."""

    places: dict[str, list[str]]


class Found(NamedTuple):
    """What pilot runs have found; one phase at least is possible."""

    runs: list[PilotRuns]  # one, or one for each path that was tried
    weighing: Weighing | None  # None: wake is impossible
    dreams: Dreams | None  # None: sleep is
    errors: dict[str, Exception]  # why, by phase
    warnings: list[str]


def description(model: ProgramFn, guide: ProgramFn, arguments: Arguments, found: Found) -> str:
    """All that there is to say, in paragraphs."""
    models, guides = merged(runs.model for runs in found.runs), merged(runs.guide for runs in found.runs)
    lines = [("model", name_of(unwrapped(model)).strip("'")), ("guide", name_of(unwrapped(guide)).strip("'"))]
    lines += [*_wake(found), *_sleep(found), *_minibatches(models | guides), *_constants(models)]
    lines += [*_masks(models), *_scales(found, models), *_factors(models), *_branching(models | guides, found)]
    lines += [*_static(arguments, model), *_state(models | guides)]
    tables = [latent_table(models, guides, found.runs), data_table(models), param_table(models, guides)]
    parts = [labelled(lines), *filter(None, tables)]
    parts += [labelled(("warning", " ".join(text.split())) for text in found.warnings)] if found.warnings else []
    return "\n\n".join(parts)


def merged(traces: Iterable[Trace]) -> Trace:
    """The sites of several runs, each as the first that has it does."""
    every: Trace = {}
    for run in traces:
        every |= {name: site for name, site in run.items() if name not in every}
    return every


# What wake and sleep do

_OWN = "each has weights of its own"


def _wake(found: Found) -> Lines:
    if found.weighing is None:
        yield "wake", _impossible(found.errors["wake"])
        return
    units, num_data, alone = found.weighing
    plates = {} if alone else _unit_plates(found.runs[0])
    sizes = [f"{name!r} ({size})" for name, size in plates.items()] if len(plates) > 1 else map(repr, plates)
    elements = f"of plate{'s' * (len(plates) > 1)} {listed(sizes)}"
    if num_data is not None and plates:
        within = f"{math.prod(units.shape)} in each of {num_data} data, the elements {elements}"
        yield "units", f"{within}: {_OWN}; shapes are those of one datum"
    elif num_data is not None:
        yield "units", f"{num_data}, the data along data_axes: {_OWN}; shapes are those of one datum"
    elif plates:
        yield "units", f"{math.prod(units.shape)}, the elements {elements}: {_OWN}"
    else:
        num = sum(num_elements(site) for site in data_sites(found.runs[0].model).values())
        what = f"all {num} data" if num > 1 else "all that is drawn"
        yield "units", f"1, {_why_one(found.runs[0], alone)}: a particle has a single weight for {what}"
    inner = {} if alone else _inner_plates(found.runs[0], units)
    if inner:
        sizes = listed(f"{name!r} ({size})" for name, size in inner.items())
        yield "inner plates", f"{sizes}: by num_local_particles their elements may have particles of their own"


def _unit_plates(runs: PilotRuns) -> dict[str, int]:
    """Names and sizes of the plates whose elements are units."""
    sites = [s for run in runs for s in sample_sites(run).values() if not s.get("is_constant")]
    common = set.intersection(*(set(site["cond_indep_stack"]) for site in sites)) if sites else set()
    return {frame.name: frame.size for frame in sorted(common, key=lambda frame: frame.dim)}


def _inner_plates(runs: PilotRuns, units: Units) -> dict[str, int]:
    """Names and sizes of the plates that latents are in, and other sites are not."""
    frames = {frame for site in latent_sites(runs.guide).values() for frame in site["cond_indep_stack"]}
    return {frame.name: frame.size for frame in sorted(frames - units.frames, key=lambda frame: frame.dim)}


def _why_one(runs: PilotRuns, alone: bool) -> str:
    if alone:
        return "as Python branches on what is drawn"
    sites = {n: s for run in runs for n, s in sample_sites(run).items() if not s.get("is_constant")}
    frames = {frame for site in sites.values() for frame in site["cond_indep_stack"]}
    if not frames:
        return "as there is no plate"
    outside = {frame.name: [n for n in sites if frame not in sites[n]["cond_indep_stack"]] for frame in frames}
    plate = min(outside, key=lambda name: len(outside[name]))
    names = outside[plate]
    shown = [*map(repr, names[:3]), *([f"{len(names) - 3} more"] if len(names) > 3 else [])]
    return f"as {listed(shown)} {'are' if len(names) > 1 else 'is'} outside of plate {plate!r}"


def _sleep(found: Found) -> Lines:
    if found.dreams is None:
        yield "sleep", _impossible(found.errors["sleep"])
        return
    places = found.dreams.places
    by_place: dict[str, list[str]] = {}
    for name, where in places.items():
        by_place.setdefault(listed(where), []).append(name)
    if list(by_place) == [""]:
        yield "sleep", f"dreams {listed(places)}, which the guide does not read"
        return
    reads = [f"{listed(names)} from {where}" for where, names in by_place.items()]
    reads = [reads[0].removeprefix(f"{listed(places)} ")] if len(reads) == 1 else reads
    yield "sleep", f"dreams {listed(places)}; the guide reads {'it' if len(places) == 1 else 'them'} {listed(reads)}"


def _impossible(error: Exception) -> str:
    if not is_own(error):
        return f"impossible: the programs raise {type(error).__name__}: {first_line(error)}"
    return f"impossible: {error}"


# What else there is


def _minibatches(sites: Trace) -> Lines:
    for name, site in sites.items():
        if site["type"] == "plate" and len(site["value"]) < site["args"][0]:
            num, size = len(site["value"]), site["args"][0]
            yield "minibatch", f"{num} of {size} elements of plate {name!r}; losses count each {size / num:g} times"


def _constants(sites: Trace) -> Lines:
    if names := list(constant_sites(sites)):
        yield "constant", f"{listed(names)}, given by numpyro.handlers.condition: neither drawn nor dreamt"


def _masks(sites: Trace) -> Lines:
    for name, site in sample_sites(sites).items():
        mask = mask_of_values(site["fn"])
        if mask is None:
            continue
        if not is_known(mask):
            yield "masked", f"some of {name}"
            continue
        scored = np.broadcast_to(np.asarray(mask), np.shape(site["value"]))
        if not scored.all():
            yield "masked", f"{scored.size - scored.sum()} of the {scored.size} numbers of {name}, which play no part"


def _scales(found: Found, sites: Trace) -> Lines:
    of_units = 1.0 if found.weighing is None else found.weighing.units.scale
    for name, site in sample_sites(sites).items():
        scale = site["scale"]
        if scale is None or isinstance(scale, Tracer) or np.allclose(np.asarray(scale), of_units):
            continue
        values = np.unique(np.asarray(scale) / of_units)
        times = f"{values[0]:g} times" if values.size == 1 else f"between {values[0]:g} and {values[-1]:g} times"
        yield "scaled", f"the log density of {name} counts {times}"


def _factors(sites: Trace) -> Lines:
    if names := list(factor_sites(sites)):
        yield "factor", f"{listed(names)}: terms of the log density that nothing is drawn from"


def _branching(sites: Trace, found: Found) -> Lines:
    names = [name for name, site in sample_sites(sites).items() if site["infer"].get("branching")]
    if names:
        num = len(found.runs)
        yield "branching", f"Python branches on {listed(names)}; what is below was met in {num} runs of the programs"


def _static(arguments: Arguments, model: ProgramFn) -> Lines:
    given = [f"{name} = {value}" for name, value in static_arguments(tuple(arguments), model).items()]
    if given:
        yield "static", f"{listed(given)}: Python may branch on it, and each value compiles a step of its own"


def _state(sites: Trace) -> Lines:
    if names := list(mutable_sites(sites)):
        yield "state", f"{listed(names)}: carried from step to step, in state.mutable_state"
