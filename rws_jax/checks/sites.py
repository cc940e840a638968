"""What the sites of one program must not be, and the messages that say so."""

import numbers
import warnings
from collections.abc import Iterable
from typing import Any, NoReturn

import jax
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer

from rws_jax.core.errors import fail
from rws_jax.core.numpyro_internals import ActivePlate
from rws_jax.core.sites import Site, Trace, base_distribution, latent_sites


def fail_unseeded(role: str, where: str) -> NoReturn:
    """A program asked for randomness and no handler gave it a key."""
    fail(
        TypeError,
        f"the {role} is not seeded: {where} has no random key",
        expected="a program wrapped in numpyro.handlers.seed",
        found="a bare program",
        hint=f"pass numpyro.handlers.seed({role.replace(' ', '_')}, rng_key)",
    )


def fail_empty_plate(cause: Exception) -> NoReturn:
    """NumPyro has no plates without elements."""
    fail(
        ValueError,
        "a plate has no elements",
        expected="at least one datum",
        found="plate(name, 0): arguments without data",
        hint="leave empty batches out",
        cause=cause,
    )


def check_in_control_flow(role: str, site: Site) -> None:
    """In the bodies of scan and cond, NumPyro neither trains parameters nor scales subsampled plates."""
    if site["type"] == "sample" and not site["is_observed"] and site["infer"].get("branching"):
        fail(
            ValueError,
            f"branching site {site['name']!r} of the {role} is inside a scan or cond body, which is compiled as one",
            expected="branching sites outside of the bodies of numpyro.contrib.control_flow",
            found=f"infer={{'branching': True}} at site {site['name']!r}",
            hint="write the loop in Python, or drop the annotation if nothing branches on the site",
        )
    if site["type"] in ("param", "mutable") or (site["type"] == "plate" and site["value"] is None):
        what, full, hint = _NOT_IN_CONTROL_FLOW[site["type"]]
        fail(
            ValueError,
            f"{what} {site['name']!r} of the {role} is inside a scan or cond body, where NumPyro does not support it",
            expected=f"no {what} in bodies of numpyro.contrib.control_flow",
            found=f"{full}({site['name']!r}, ...) inside of one",
            hint=hint,
        )


def check_array(role: str, site: Site) -> None:
    """What a site observes is an array."""
    if site["value"] is not None and not isinstance(
        site["value"], jax.Array | np.ndarray | np.generic | numbers.Number
    ):
        fail(
            TypeError,
            f"the value of site {site['name']!r} of the {role} is no array",
            expected="an array or a number",
            found=f"a {type(site['value']).__name__}",
            hint="pass jnp.asarray(...) as obs; JAX takes a list for a tree of scalars",
        )


def check_minibatches(role: str, site: Site, plates: Iterable[ActivePlate], seen: Iterable[Any]) -> None:
    """All particles see one minibatch, which they can only if it is not hidden from the handlers that see to it."""
    for plate in plates:
        if len(plate.indices) < plate.size and not any(plate.indices is indices for indices in seen):
            fail(
                ValueError,
                f"plate {plate.name!r} of the {role} is subsampled, and its record is hidden",
                expected="one minibatch for all particles and both programs, which is handed on by the plate's record",
                found=f"site {site['name']!r} in plate {plate.name!r}, {len(plate.indices)} of {plate.size}, which"
                " numpyro.handlers.block hides",
                hint="let plates through, as in block(program, hide_fn=lambda site: site['type'] != 'plate' and ...),"
                " or expose_types=['plate', ...]",
            )


_NOT_IN_CONTROL_FLOW = {
    "param": ("param", "numpyro.param", "let the body close over a parameter taken before it"),
    "plate": ("subsampled plate", "numpyro.plate", "pass the minibatch as an argument, and give the plate its size"),
    "mutable": ("mutable site", "numpyro.primitives.mutable", "run layers that have state before or after it"),
}


def check_guide(run: Trace, role: str = "guide") -> None:
    """A guide proposes latents; it does not score data, and nothing in it is summed out."""
    for name, site in run.items():
        if site["type"] != "sample":
            continue
        if site["is_observed"]:
            factor = isinstance(site["fn"], dist.Unit)
            fail(
                ValueError,
                f"the {role} has {'a factor at' if factor else 'observed'} site {name!r}",
                expected="latent sample sites only",
                found=f"numpyro.factor({name!r}, ...)" if factor else f"numpyro.sample({name!r}, ..., obs=...)",
                hint="move it to the model; a guide reads data as ordinary arguments",
            )
        if site["infer"].get("enumerate"):
            fail(
                ValueError,
                f"site {name!r} of the {role} is annotated for enumeration, which does not happen here",
                expected=f"a {role} whose every site is drawn",
                found=f"infer={{'enumerate': {site['infer']['enumerate']!r}}} at site {name!r}",
                hint="drop the annotation (config_enumerate); discrete sites need none",
            )


def check_proper(role: str, site: Site) -> None:
    """An improper prior has a density, but cannot be drawn from."""
    if (
        site["type"] == "sample"
        and not site["is_observed"]
        and isinstance(base_distribution(site["fn"]), dist.ImproperUniform)
    ):
        fail(
            ValueError,
            f"site {site['name']!r} of the {role} cannot be drawn: its distribution is improper",
            expected=f"a {role} made of proper distributions",
            found=f"ImproperUniform at site {site['name']!r}",
            hint="pass defensive_guide, a proper distribution over the latents"
            if role == "model"
            else "use a proper distribution over the same support",
        )


def check_defensive_guide(run: Trace) -> None:
    """A defensive guide is a guide that has nothing to learn."""
    for kind, what in (("param", "parameters"), ("mutable", "mutable state")):
        names = sorted(name for name, site in run.items() if site["type"] == kind)
        if names:
            fail(
                ValueError,
                f"the defensive guide has {what}, which nothing would train",
                expected=f"a defensive guide without {what}",
                found=f"{kind} sites {names}",
                hint="give it fixed values; it only has to reach what the guide may come to miss",
            )
    check_guide(run, "defensive guide")


def check_prior(model_run: Trace, guide_run: Trace) -> None:
    """The model's prior, as defensive guide, must draw auxiliary sites as well."""
    for name, site in latent_sites(guide_run).items():
        if site["infer"].get("is_auxiliary") and name not in model_run:
            fail(
                ValueError,
                f"option 'defensive' draws from the model's prior, which has no auxiliary site {name!r}",
                expected=f"sites {sorted(latent_sites(guide_run))}, as in the guide",
                found=f"sites {sorted(latent_sites(model_run))} in the model",
                hint="pass defensive_guide, which draws the auxiliary sites too",
            )


def check_unscaled(guide_run: Trace, subsampling: float, option: str) -> None:
    """A power of the guide's density is not what its draws come from."""
    for name, site in latent_sites(guide_run).items():
        scale = 1.0 if site["scale"] is None else site["scale"]
        if isinstance(scale, Tracer) or not np.allclose(scale, subsampling):
            fail(
                ValueError,
                f"option {option} needs the guide's density itself, but site {name!r} of the guide is scaled",
                expected="no numpyro.handlers.scale around sites of the guide",
                found=f"site {name!r} under handlers.scale",
                hint=f"scale sites of the model alone, or leave out {option}",
            )


def check_reparameterised(run: Trace) -> None:
    """The reparameterised gradient passes through every draw."""
    for name, site in latent_sites(run).items():
        if not (site["fn"].has_rsample or isinstance(base_distribution(site["fn"]), dist.Delta)):
            fail(
                ValueError,
                f"option 'gradient' is 'dreg', but site {name!r} of the guide is not reparameterised",
                expected="a guide whose every site has has_rsample",
                found=f"{type(base_distribution(site['fn'])).__name__} at site {name!r}",
                hint="use gradient='score', the default, which needs no reparameterisation",
            )


def check_unbranched(run: Trace) -> None:
    """The reparameterised gradient does not see which branch would have been taken."""
    for name, site in latent_sites(run).items():
        if site["infer"].get("branching"):
            fail(
                ValueError,
                "programs have branching sites, and an option does not go with these",
                expected="gradient='score': a branch has no derivative",
                found=f"gradient='dreg', and infer={{'branching': True}} at site {name!r}",
                hint="leave the option out, or branch by numpyro.contrib.control_flow.cond or handlers.mask instead",
            )


def warn_of_auxiliary(guide_run: Trace, model_run: Trace) -> None:
    """Without a density in the model an auxiliary site leaves the weights without a normalised target."""
    guide_latents = latent_sites(guide_run)
    if any(isinstance(base_distribution(site["fn"]), dist.Delta) for site in guide_latents.values()):
        return  # an automatic guide: the latents are functions of the auxiliary site, with the density of both
    for name in guide_latents.keys() - model_run.keys():
        warnings.warn(
            f"auxiliary site {name!r} of the guide has no density in the model: minus wake-theta is no lower bound on"
            f" the evidence. Add numpyro.sample({name!r}, ...) to the model, any density of it given the latents.",
            stacklevel=2,
        )


def check_data(name: str, num_outside: int) -> None:
    """Data that are NaN, or outside of a support whatever the parameters, would be left out at every step."""
    if num_outside:
        fail(
            ValueError,
            f"data at observed site {name!r} are NaN or outside of the support of their distribution",
            expected="data that the model can produce",
            found=f"{num_outside} such values",
            hint="clean the data, or hide missing values by numpyro.handlers.mask",
        )
