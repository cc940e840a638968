"""What programs have to be for their scans to run in lockstep, and the messages that say so."""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import jax.numpy as jnp

from rws_jax.core.errors import fail
from rws_jax.core.sites import Site, Trace, base_distribution, latent_sites, sample_sites

_OPTION = "option 'resample' is \"systematic\""


def fail_alone() -> NoReturn:
    """Particles that differ in their sites are not exchanged for one another."""
    fail(
        ValueError,
        f"{_OPTION}, but programs branch in Python",
        expected="particles that all have the same sites",
        found="branching sites",
        hint="leave the option out, or branch by numpyro.contrib.control_flow.cond or handlers.mask instead",
    )


def check_one_scan(role: str, num: int, others: Iterable[str]) -> None:
    """The steps of a program are those of its one scan."""
    others = sorted(set(others))
    if others:
        fail(
            ValueError,
            f"{_OPTION}, but numpyro.handlers.{others[0]} is around a scan of the {role}",
            expected="of the handlers that give values, condition and substitute alone",
            found=f"handlers.{others[0]}",
            hint="give values by numpyro.handlers.substitute, or leave the option out",
        )
    if num != 1:
        fail(
            ValueError,
            f"{_OPTION}, but the {role} has {'no scan' if num == 0 else f'{num} scans'}",
            expected="one numpyro.contrib.control_flow.scan in each of model and guide, outside of any cond",
            found=f"{num or 'none'} in the {role}",
            hint="write the steps of a sequence as one scan in both programs: loops, GaussianRandomWalk and AutoNormal"
            " are none (a scan without sample sites may be a jax.lax.scan); without sequences, leave the option out",
        )


def check_same_steps(lengths: Sequence[int], reverse: Sequence[bool]) -> None:
    """Step t of the one program goes with step t of the other; both are model's and guide's."""
    if lengths[0] != lengths[1]:
        fail(
            ValueError,
            f"{_OPTION}, but the scans of model and guide differ in length",
            expected=f"{lengths[0]} steps, as in the model",
            found=f"{lengths[1]} in the guide",
            hint="let both programs scan over the same axis of the data",
        )
    if reverse[0] != reverse[1]:
        direction = [f"reverse={backward}" for backward in reverse]
        fail(
            ValueError,
            f"{_OPTION}, but the scans of model and guide run in opposite directions",
            expected=f"{direction[0]}, as in the model",
            found=f"{direction[1]} in the guide",
            hint="particles are resampled as they go along: let both programs scan in one direction, and give the guide"
            " a summary of what is to come by xs",
        )


def check_sites(role: str, run: Trace, before: Iterable[str], body: Trace) -> None:
    """All sample sites come before the scan or are of its body, and handlers around the scan leave these alone."""
    for name, site in sample_sites(body).items():
        if name not in run:
            _fail_around(role, name, "its name, or its record", "scope or block")
        _check_around(role, name, site, run[name])
    for name, site in sample_sites(run).items():
        if name not in before and name not in body:
            fail(
                ValueError,
                f"{_OPTION}, but site {name!r} of the {role} comes after the scan",
                expected="sample sites before the scan or in its body: particles have been resampled by its end",
                found=f"{'observed' if site['is_observed'] else 'latent'} site {name!r} after it",
                hint="move it into the body, at the last step by numpyro.handlers.mask, say, or before the scan",
            )


def _check_around(role: str, name: str, inside: Site, outside: Site) -> None:
    if base_distribution(inside["fn"]).__class__ is not base_distribution(outside["fn"]).__class__:
        _fail_around(role, name, "its distribution", "lift or reparam")
    if _num_masks(inside["fn"]) != _num_masks(outside["fn"]):
        _fail_around(role, name, "its mask", "mask")
    if inside["cond_indep_stack"] != outside["cond_indep_stack"]:
        _fail_around(role, name, "its plates", "plate")
    if jnp.ndim(1.0 if outside["scale"] is None else outside["scale"]):
        _fail_around(role, name, "its scale, which has more than one number,", "scale")


def _num_masks(fn: Any) -> int:
    num = 0
    while hasattr(fn, "base_dist"):
        num += hasattr(fn, "_mask")
        fn = fn.base_dist
    return num


def _fail_around(role: str, name: str, what: str, handler: str) -> NoReturn:
    fail(
        ValueError,
        f"{_OPTION}, but a handler around the scan of the {role} changes site {name!r}",
        expected="handlers and plates within the body of the scan, each step of which is weighed by itself",
        found=f"{what} changed from outside, as by {handler}",
        hint="put the handler, or the plate, into the body",
    )


def check_steps_match(model_body: Trace, guide_body: Trace, model_run: Trace) -> None:
    """Each step draws latents that both programs have there, and observes something."""
    model_latents, guide_latents = latent_sites(model_body), latent_sites(guide_body)
    own = {name for name, site in guide_latents.items() if not site["infer"].get("is_auxiliary") or name in model_run}
    for name in sorted(model_latents.keys() ^ own):
        roles = ("model", "guide") if name in model_latents else ("guide", "model")
        fail(
            ValueError,
            f"{_OPTION}, but latent site {name!r} is in the scan of the {roles[0]} and not in that of the {roles[1]}",
            expected=f"site {name!r} in the bodies of both scans, or before both",
            found=f"site {name!r} outside of the scan of the {roles[1]}",
            hint="let the guide draw latents where the model does",
        )
    if not model_latents:
        fail(
            ValueError,
            f"{_OPTION}, but the scan of the model draws no latent",
            expected="latents in the body, which differ from particle to particle",
            found=f"sites {sorted(sample_sites(model_body))} in the body",
            hint="leave the option out: there is nothing to resample",
        )
    if not any(site["is_observed"] for site in sample_sites(model_body).values()):
        fail(
            ValueError,
            f"{_OPTION}, but the scan of the model observes nothing",
            expected="data at each step, numpyro.sample(..., obs=...) in the body",
            found=f"sites {sorted(sample_sites(model_body))} in the body, none of them observed",
            hint="weights of steps are made of the data there: move observations into the body, or leave the option"
            " out",
        )


def check_one_unit(sizes: Iterable[int]) -> None:
    """All particles of a step share one set of ancestors."""
    sizes = [size for size in sizes if size > 1]
    if sizes:
        fail(
            ValueError,
            f"{_OPTION}, but plates make units of the sequences",
            expected="programs of one sequence",
            found=f"plates around all sites, of size {', '.join(map(str, sizes))}",
            hint="write both programs for one sequence, without the plate, and pass data_axes=0",
        )


def fail_xs(role: str) -> NoReturn:
    """What is scanned over stays in its place when particles are resampled."""
    fail(
        ValueError,
        f"{_OPTION}, but the scan of the {role} runs over arrays that depend on latents",
        expected="xs made of arguments and parameters alone: a particle that is resampled takes its carry along, and"
        " what its body closes over",
        found="xs that depend on what is drawn before the scan",
        hint="let the body close over them, and take its row by a position that xs counts, jnp.arange(length)",
    )
