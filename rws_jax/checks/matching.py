"""What model and guide must agree on: sites, shapes, plates and the ownership of parameters."""

from collections.abc import Iterable
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from rws_jax.checks.masks import check_same_mask
from rws_jax.checks.params import check_alike
from rws_jax.checks.shapes import check_within_plates
from rws_jax.checks.supports import check_covers, check_same_support
from rws_jax.core.errors import fail
from rws_jax.core.numpyro_internals import comes_out_of_control_flow
from rws_jax.core.sites import Site, Trace, base_distribution, latent_sites, plate_sizes, site_shape
from rws_jax.core.supports import mask_of_values
from rws_jax.core.trees import is_known


def check_drawn(role: str, site: Site, values: dict[str, Any]) -> None:
    """A latent site can be scored only at a value that the other program drew."""
    name = site["name"]
    if name in values:
        return
    if role == "model":
        _fail_missing(name, values)
    if site["infer"].get("is_auxiliary"):
        fail(
            ValueError,
            f"sleep cannot train auxiliary site {name!r} of the guide: dreams have no value for it",
            expected="a guide whose every site is a latent site of the model",
            found=f"site {name!r} with infer={{'is_auxiliary': True}}",
            hint="use insomnia=1.0, or a guide without auxiliary sites, such as AutoNormal",
        )
    _fail_extra(name, values)


def check_shape(role: str, site: Site, shape: tuple[int, ...]) -> None:
    """A value drawn by the other program must have exactly the shape of this program's site."""
    own = site_shape(site)
    if own != shape:
        fail(
            ValueError,
            f"shapes differ at latent site {site['name']!r}",
            expected=f"{own}, its shape in the {role} with {_describe(site)}",
            found=f"{shape}, as drawn",
            hint="give both programs the same plates, batch shape and to_event() at this site",
        )


def check_none_missing(model_latents: Iterable[str], guide_run: Trace) -> None:
    """The guide must draw every latent site of the model."""
    for name in model_latents:
        if name not in guide_run:
            _fail_missing(name, latent_sites(guide_run))


def check_match(model_run: Trace, guide_run: Trace, *, same_supports: bool = False) -> None:
    """Model and guide must agree on latent sites, shapes, event dimensions, supports and plates."""
    model_latents, guide_latents = latent_sites(model_run), latent_sites(guide_run)
    check_none_missing(model_latents, guide_run)
    joint = any(site["infer"].get("is_auxiliary") for site in guide_latents.values())
    for name, guide_site in guide_latents.items():
        if name in model_latents:
            _check_same_site(name, model_latents[name], guide_site, ("model", "guide"))
            if not _is_scored_elsewhere(model_latents[name], model_run):
                check_same_mask(name, model_latents[name], guide_site, ("model", "guide"))
            if not (joint or isinstance(base_distribution(model_latents[name]["fn"]), dist.Delta)):
                _check_density(name, guide_site)
            check_covers(name, guide_site["fn"], model_latents[name]["fn"], "model")
            if same_supports:
                check_same_support(name, guide_site["fn"], model_latents[name]["fn"])
        elif guide_site["infer"].get("is_auxiliary"):
            _check_density(name, guide_site)
        else:
            _fail_extra(name, model_latents)


def check_defensive_match(guide_run: Trace, run: Trace) -> None:
    """A defensive guide draws what the guide draws: each unit of a particle comes from one of the two."""
    role = "defensive guide"
    guide_latents, latents = latent_sites(guide_run), latent_sites(run)
    if guide_latents.keys() != latents.keys():
        fail(
            ValueError,
            f"guide and {role} draw different sites",
            expected=f"sites {sorted(guide_latents)}, as in the guide",
            found=f"sites {sorted(latents)} in the {role}",
            hint=f"a particle comes from one of the two, so let the {role} draw every site of the guide",
        )
    for name, site in latents.items():
        _check_same_site(name, guide_latents[name], site, ("guide", role))
        check_same_mask(name, guide_latents[name], site, ("guide", role))
        check_covers(name, guide_latents[name]["fn"], site["fn"], role)


def check_defensive_minibatch(runs: Iterable[Trace], plates: dict[str, Any]) -> None:
    """A minibatch is the guide's, which would have to run, and to branch, though its draws are not used."""
    branching = [site for run in runs for site in latent_sites(run).values() if site["infer"].get("branching")]
    for name in plates if branching else ():
        fail(
            ValueError,
            f"programs have branching sites, and defensive proposals would see another minibatch of plate {name!r}",
            expected="no subsampled plate beside branching sites and option 'defensive'",
            found=f"plate {name!r} with subsample_size",
            hint="write the programs for one datum, and pass minibatches with data_axes=0",
        )


def check_disjoint(theta: Trace, phi: Trace, shared_params: bool) -> None:
    """Each parameter belongs to one program, and so to one loss, unless the caller wants it shared."""
    shared = sorted(theta.keys() & phi.keys())
    if shared and not shared_params:
        fail(
            ValueError,
            f"param sites {shared} occur in both model and guide",
            expected="each numpyro.param name in one of the two programs: they minimise different losses",
            found=f"{shared} in both",
            hint="rename the param sites of the guide, or pass shared_params=True to train them on both losses",
        )
    for name in shared:
        check_alike(name, theta[name], phi[name], "shared")


def check_model_has_params(theta: dict[str, Any], model_has_params: bool) -> None:
    """`model_has_params=False` has to be true."""
    if theta and not model_has_params:
        fail(
            ValueError,
            "option 'model_has_params' is False, but the model has parameters",
            expected="a model without numpyro.param",
            found=f"param sites {sorted(theta)}",
            hint="drop the option; optax.set_to_zero() as their optimizer keeps parameters as they are",
        )


def _fail_missing(name: str, guide_sites: Iterable[str]) -> NoReturn:
    fail(
        ValueError,
        f"latent site {name!r} of the model is missing from the guide",
        expected=f"the guide to draw {name!r}",
        found=f"guide sites {sorted(guide_sites)}",
        hint=f"add numpyro.sample({name!r}, ...) to the guide, or observe it in the model with obs=...",
    )


def _fail_extra(name: str, model_sites: Iterable[str]) -> NoReturn:
    fail(
        ValueError,
        f"sample site {name!r} of the guide is not a latent site of the model",
        expected=f"one of the model's latent sites {sorted(model_sites)}",
        found=f"numpyro.sample({name!r}, ...) in the guide",
        hint="rename it, give the model a site of this name too, or mark it infer={'is_auxiliary': True}",
    )


def _check_same_site(name: str, site: Site, other: Site, roles: tuple[str, str]) -> None:
    if site["fn"].event_dim != other["fn"].event_dim:
        fail(
            ValueError,
            f"event dimensions differ at latent site {name!r}",
            expected=f"event_dim={site['fn'].event_dim}, as in the {roles[0]}",
            found=f"event_dim={other['fn'].event_dim} in the {roles[1]}",
            hint="a missing or superfluous to_event() takes a dimension for a batch of independent units",
        )
    shapes = [jnp.shape(s["value"]) for s in (site, other)]
    if shapes[0] != shapes[1]:
        fail(
            ValueError,
            f"shapes differ at latent site {name!r}",
            expected=f"{shapes[0]}, its shape in the {roles[0]}",
            found=f"{shapes[1]}, as drawn by the {roles[1]}",
            hint="plates, batch shapes, to_event() and the lengths of scans must be the same in both programs",
        )
    plates = [sorted(map(tuple, s["cond_indep_stack"])) for s in (site, other)]
    # Automatic guides that draw all latents jointly hand them on as Delta sites, outside of any plate.
    if plates[0] != plates[1] and not isinstance(other["fn"], dist.Delta):
        fail(
            ValueError,
            f"plates differ at latent site {name!r}",
            expected=f"{_describe(site)}, as in the {roles[0]}",
            found=f"{_describe(other)} in the {roles[1]}",
            hint="put the site under the same numpyro.plate, with equal name, size and dim, in both programs",
        )
    sizes = [plate_sizes(s) for s in (site, other)]
    for frame in sizes[0].keys() & sizes[1].keys():
        if sizes[0][frame] != sizes[1][frame]:
            fail(
                ValueError,
                f"plate {frame.name!r} differs between {roles[0]} and {roles[1]}",
                expected=f"size {sizes[0][frame]}, subsample size {frame.size}, as in the {roles[0]}",
                found=f"size {sizes[1][frame]}, subsample size {frame.size} in the {roles[1]}",
                hint="give the plate the same size and subsample_size in both programs",
            )
    if not comes_out_of_control_flow(site):  # where its axes are steps as well as plates
        check_within_plates(roles[0], site)


def _is_scored_elsewhere(site: Site, run: Trace) -> bool:
    """Whether a latent that is masked as a whole has its density at another site: one that observes it, or a factor."""
    mask = mask_of_values(site["fn"])
    if mask is None or not is_known(mask) or np.asarray(mask).any():
        return False
    observed = (other for other in run.values() if other["type"] == "sample" and other["is_observed"])
    return any(isinstance(other["fn"], dist.Unit) or other["value"] is site["value"] for other in observed)


def _check_density(name: str, guide_site: Site) -> None:
    if isinstance(base_distribution(guide_site["fn"]), dist.Delta):
        fail(
            ValueError,
            f"site {name!r} of the guide is a Delta, which has no density to be trained",
            expected="a guide that spreads over the posterior",
            found=f"Delta at site {name!r}",
            hint="use AutoNormal, not AutoDelta or AutoLaplaceApproximation; for point estimates use numpyro.param in"
            " the model",
        )


def _describe(site: Site) -> str:
    plates = [
        f"{frame.name}({size=}, {f'subsample_size={frame.size}, ' if frame.size != size else ''}dim={frame.dim})"
        for frame, size in plate_sizes(site).items()
    ]
    return "plates " + ", ".join(plates) if plates else "no plate"
