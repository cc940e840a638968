"""What sleep asks of a model that is dreamt from and of a guide that is shown the dreams, and messages that say so."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from rws_jax.checks.routes import check_shape, name_of
from rws_jax.core.errors import fail, is_own
from rws_jax.core.layers import unwrapped
from rws_jax.core.sites import Site, Trace, base_distribution, constant_sites, latent_sites
from rws_jax.core.supports import mask_of_values
from rws_jax.core.trees import is_known


@contextmanager
def without_training(function: str) -> Iterator[None]:
    """Errors that speak of sleep speak of `function` instead, which dreams as well, but trains nothing."""
    try:
        yield
    except (TypeError, ValueError) as error:
        said = str(error)
        if not is_own(error):
            raise
        said = re.sub(r"\bsleep cannot train\b", f"{function} cannot test", said)
        said = re.sub(r"\bsleep (?=cannot|has)", f"{function} ", said)
        said = re.sub(r" in sleep\b", " in dreams", said)
        said = re.sub(r",? or (use )?insomnia=1\.0|(?<=use )insomnia=1\.0, or ", "", said)
        if said == str(error):
            raise
        raise type(error)(said) from None


def check_dreamable(site: Site) -> None:
    """A site can be dreamt if it has a distribution to be sampled from."""
    name, fn = site["name"], base_distribution(site["fn"])
    if isinstance(fn, dist.Unit | dist.ImproperUniform):
        what = "a numpyro.factor" if isinstance(fn, dist.Unit) else "an improper prior"
        fail(
            ValueError,
            f"sleep cannot dream from the model: site {name!r} is {what}, which cannot be sampled",
            expected="a model made of proper distributions",
            found=f"{what} at site {name!r}",
            hint="write it as numpyro.sample with a proper distribution, or use insomnia=1.0",
        )
    mask = mask_of_values(site["fn"])
    if not (site["is_observed"] or mask is None or not is_known(mask) or np.asarray(mask).any()):
        fail(
            ValueError,
            f"sleep cannot dream latent site {name!r}, which is masked as a whole: its density is another one",
            expected="latents that are drawn from what they are scored by",
            found=f"mask False at site {name!r}",
            hint="draw it from its own distribution, or use insomnia=1.0",
        )


def fail_observes_latents(name: str) -> NoReturn:
    """What is observed is drawn elsewhere in the model, and dreamt from another distribution there."""
    fail(
        ValueError,
        f"sleep cannot dream site {name!r}, which observes what the model itself draws",
        expected="obs=... of data, that is of arguments: dreams of latents come from where these are drawn",
        found=f"an observed value that depends on latents at site {name!r}",
        hint="draw the latent from the distribution that it is scored by, or use insomnia=1.0",
    )


def check_dream(run: Trace, data_sites: tuple[str, ...], data: dict[str, Any]) -> None:
    """There must be data to dream."""
    samples = {name: site for name, site in run.items() if site["type"] == "sample"}
    unknown = sorted(set(data_sites) - samples.keys())
    if unknown:
        fail(
            ValueError,
            f"option 'observed_sites' names {unknown}, which the model does not have",
            expected=f"some of the model's sample sites {sorted(samples)}",
            found=f"{unknown}",
            hint="list the names of the sites that hold data, as in observed_sites=('x',)",
        )
    for name in run:
        if {f"{name}_observed", f"{name}_unobserved"} <= samples.keys():
            fail(
                ValueError,
                f"sleep cannot dream site {name!r}, which is observed in part by obs_mask",
                expected="sample sites that are observed as a whole or not at all",
                found=f"obs_mask=... at site {name!r}",
                hint="hide missing data by numpyro.handlers.mask, or use insomnia=1.0",
            )
    if not data:
        given = sorted(constant_sites(run))
        fail(
            ValueError,
            "sleep has no data to dream: the model has no observed site",
            expected="a sample site with obs=..., or option 'observed_sites'",
            found=f"latent sites {sorted(latent_sites(run))}" + (f", constants {given}" if given else ""),
            hint="for a model that runs without data, name its data sites, as in observed_sites=('x',)",
        )


def check_placeholders(name: str, dreamt: Any, real: Any) -> None:
    """Where a site is masked its real values stay, so there must be one for each that was dreamt."""
    try:
        fits = jnp.broadcast_shapes(jnp.shape(real), jnp.shape(dreamt)) == jnp.shape(dreamt)
    except ValueError:
        fits = False
    if not fits:
        check_shape(name, dreamt, real)


def check_masks(moved: list[str]) -> None:
    """What is masked keeps its real values, so a dream must not choose what that is."""
    if moved:
        fail(
            ValueError,
            f"the mask of observed site {moved[0]!r} depends on what is dreamt",
            expected="masks that follow from the arguments: where one is False the guide sees the real placeholder",
            found=f"a mask of {moved[0]!r} that depends on latents or on other dreamt data, a length, say",
            hint="pass simulated_data_to_args, which says what the guide sees where a dream is masked, as in"
            " jnp.where(mask, sim['x'], 0.0); or pass the mask as an argument, or use insomnia=1.0",
        )


def fail_reads_data(name: str) -> NoReturn:
    """Parts of a dream would be real data."""
    fail(
        ValueError,
        f"the model's dreams depend on the real data of observed site {name!r}",
        expected="a model that reads them by obs=... alone: it has to dream up all data by itself",
        found="dreams that change with the data, for the same seed",
        hint="pass what is not to be dreamt (totals, masks, a shifted copy) as an argument of its own, let a scan carry"
        " what is, or use insomnia=1.0",
    )


def fail_shows_data(name: str, guide: Any) -> NoReturn:
    """The guide would learn from dreamt latents and real data."""
    fail(
        ValueError,
        f"the guide {name_of(unwrapped(guide))} reads real data of observed site {name!r} in sleep",
        expected="a guide that reads data where it is shown dreams",
        found="log densities that change with the real data, for the same dreams",
        hint=f"name the argument that holds them {name!r}, read them from 'observations', or pass"
        " simulated_data_to_args; pass what is no data (a mask, a length) as an argument of its own",
    )


def fail_dtype(site: Site, drawn: Any, dtype: Any) -> NoReturn:
    """A guide that computes with the type of its data would see other numbers in dreams."""
    name, family = site["name"], type(base_distribution(site["fn"])).__name__
    family, drawn, dtype = family.removesuffix("Probs").removesuffix("Logits"), jnp.dtype(drawn), jnp.dtype(dtype)
    fail(
        ValueError,
        f"dreams of observed site {name!r} are no numbers of the type that its data have",
        expected=f"data of a type that holds all that {family} may draw, such as {drawn}",
        found=f"data of type {dtype}",
        hint=f"pass them to both programs as {drawn}; a guide that computes with {dtype} converts them itself",
    )


def warn_of_prior(guide: Any) -> None:
    """Sleep is amortised: what a guide learns that reads no data is the same for all of them."""
    warnings.warn(
        f"the guide {name_of(unwrapped(guide))} reads no data, and sleep trains such a guide to the model's prior (to"
        " its marginals, if sites are independent), not to the posterior of the data. Use insomnia=1.0, or a guide that"
        " reads data",
        stacklevel=2,
    )
