"""Tables of latents, data and parameters, for `describe`."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from rws_jax.checks.supports import describe_support, family_of
from rws_jax.core.sites import (
    Site,
    Trace,
    base_distribution,
    data_sites,
    event_shape,
    latent_sites,
    param_sites,
    trained_sites,
)
from rws_jax.core.supports import covers, elementwise
from rws_jax.core.text import table
from rws_jax.programs.run import constrained_values
from rws_jax.training.pilot import PilotRuns


def latent_table(models: Trace, guides: Trace, runs: list[PilotRuns]) -> str:
    """What is drawn: shapes and plates, and the distributions of either program."""
    of_model, of_guide = latent_sites(models), latent_sites(guides)
    rows = []
    for name in of_model | of_guide:
        own, other = of_model.get(name), of_guide.get(name)
        site: Any = own or other
        num = sum(name in each.model or name in each.guide for each in runs)
        met = "" if num == len(runs) else f"in {num} of {len(runs)} runs"
        rows.append((name, *_shapes(site), _support(site), _distribution(own), _of_guide(own, other), met))
    return table(("latents", *_SHAPES, "support", "model", "guide", ""), rows) if rows else ""


def data_table(models: Trace) -> str:
    """What is observed."""
    rows = [(name, *_shapes(site), _support(site), _distribution(site)) for name, site in data_sites(models).items()]
    return table(("data", *_SHAPES, "support", "model"), rows) if rows else ""


def param_table(models: Trace, guides: Trace) -> str:
    """What is trained: of which program, in which shapes, between which bounds."""
    rows = []
    shared = trained_sites(param_sites(models)).keys() & trained_sites(param_sites(guides)).keys()
    for role, run in (("model", models), ("guide", guides)):
        values = constrained_values(run)
        for name, site in trained_sites(param_sites(run)).items():
            if name in shared and role == "guide":
                continue
            leaves, trained = jax.tree.leaves(values[name]), jax.tree.leaves(site["value"])
            num = sum(np.size(leaf) for leaf in trained)
            shape = str(jnp.shape(leaves[0])) if len(leaves) == 1 else f"{len(leaves)} arrays"
            whose = "both: shared_params=True" if name in shared else role
            constraint = site["kwargs"].get("constraint", constraints.real)
            rows.append((name, shape, f"{num:,}", _in_words(_element(constraint)), whose))
    return table(("parameters", "shape", "numbers", "values", "program"), rows) if rows else ""


_SHAPES = "shape", "event", "plates"


def _shapes(site: Site) -> tuple[str, str, str]:
    """The whole shape, how much of it is one event, and the plates around it."""
    event = event_shape(site)
    plates = sorted(site["cond_indep_stack"], key=lambda frame: frame.dim)
    return str(jnp.shape(site["value"])), str(event) if event else "", ", ".join(frame.name for frame in plates)


def _support(site: Site) -> str:
    support = None if site["fn"].support is None else elementwise(site["fn"])
    if support is None:
        return ""
    return _in_words(support)


def _in_words(support: Any) -> str:
    """Numbers by their range; vectors and matrices by what NumPyro calls them, as in "simplex" or "corr cholesky"."""
    if support is constraints.boolean:
        return "0 or 1"
    words = describe_support(support)
    return words if " " in words else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words).lower()


def _distribution(site: Site | None) -> str:
    if site is None:
        return ""
    base = base_distribution(site["fn"])
    if type(base) is dist.TransformedDistribution:
        return f"transformed {family_of(base.base_dist)}"
    return family_of(base)


def _of_guide(own: Site | None, other: Site | None) -> str:
    """The guide's distribution, and where its support is another one."""
    if other is None:
        return ""
    name = _distribution(other)
    if own is None:
        return f"{name}, auxiliary"
    if any(isinstance(base_distribution(site["fn"]), dist.Delta) for site in (own, other)):
        return name
    theirs, ours = elementwise(other["fn"]), elementwise(own["fn"])
    if not covers(theirs, ours, bounds_count=True):
        return f"{name}, narrower: {_in_words(theirs)}"
    if not covers(ours, theirs, bounds_count=True):
        return f"{name}, wider: {_in_words(theirs)}"
    return name


def _element(constraint: Any) -> Any:
    """The constraint of one element."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint
