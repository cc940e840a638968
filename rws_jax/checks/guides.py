"""What a model must be for a guide to be compiled from it, and the messages that say so."""

from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpyro.distributions as dist

from rws_jax.core.errors import fail
from rws_jax.core.numpyro_internals import ActivePlate
from rws_jax.core.sites import Site, base_distribution


def check_proposable(site: Site) -> None:
    """A latent has a proper prior that is no point."""
    base = base_distribution(site["fn"])
    if isinstance(base, dist.ImproperUniform | dist.Delta):
        what, hint = "an improper prior", "give it a proper prior, however wide"
        if isinstance(base, dist.Delta):
            what, hint = "a Delta prior", "write what is no random number as numpyro.deterministic, or as plain JAX"
        fail(
            ValueError,
            f"compile_guide cannot propose for latent site {site['name']!r}, which has {what}",
            expected="latent sites with a prior that can be drawn from, and has a density",
            found=f"{type(base).__name__} at site {site['name']!r}",
            hint=f"{hint}; or write the guide by hand",
        )


def fail_mutable(name: str) -> NoReturn:
    """The model runs once as the model and once as the guide, and its state would move twice."""
    fail(
        ValueError,
        f"compile_guide does not go with mutable state, which the model has at site {name!r}",
        expected="a model without layers that have state, such as BatchNorm or Dropout",
        found=f"mutable site {name!r}",
        hint="use layers without state (LayerNorm, say) in the model, or write the guide by hand",
    )


def check_outputs(name: str, num: int, expected: int) -> None:
    """A network of the user's has as many outputs as the proposal has parameters."""
    if num != expected:
        fail(
            ValueError,
            f"networks[{name!r}] has another number of outputs than the proposal for site {name!r} has parameters",
            expected=f"a vector of shape ({expected},); zeros are about the prior",
            found=f"shape ({num},)",
            hint=f"end the network with a layer of {expected} units, or leave it out",
        )


def check_size(name: str, num: int, expected: int, batch_shape: tuple[int, ...], plates: Sequence[ActivePlate]) -> None:
    """A plate without data along it has outputs for each element, and cannot change its size."""
    if num != expected:
        sizes = ", ".join(f"plate {plate.name!r} of {plate.size}" for plate in plates)
        fail(
            ValueError,
            f"latent site {name!r} has another number of elements than the compiled guide has been initialised for",
            expected=f"{num} outputs of its network",
            found=f"{expected}, for batch shape {batch_shape}" + (f" in {sizes}" if sizes else ""),
            hint="a plate can change its size where an argument has an axis of that size: pass data_plates={'x':"
            " ('plate',)}, say, if the shapes do not tell; else initialise the guide anew",
        )


def check_observations(unread: Sequence[str]) -> None:
    """Data that a guide has no weights for would not be read, in silence."""
    if unread:
        fail(
            ValueError,
            f"the compiled guide has no weights for {unread[0]}",
            expected="the observations that it was initialised with",
            found=f"{list(unread)}, which it has not been shown at init",
            hint="initialise it with observations={...} of all data sites, as dreams show them to it",
        )


def check_names(option: str, names: Iterable[str], known: Iterable[str], what: str) -> None:
    """An option that names what there is not would do nothing, in silence."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        fail(
            ValueError,
            f"option {option!r} of compile_guide names {unknown[0]!r}, which is none of {what}",
            expected=f"some of {sorted(known)}",
            found=f"{unknown}",
            hint="correct the name, or leave it out",
        )


def fail_plate(name: str, size: int, arguments: Iterable[str]) -> NoReturn:
    """Elements of a plate around all latents must not read one another, and so have to share their networks."""
    fail(
        ValueError,
        f"compile_guide finds no argument with an axis of plate {name!r}, which is around all latents",
        expected=f"an argument with {size} rows along its first axes, one for each element of the plate",
        found=f"arguments {sorted(arguments)}",
        hint=f"put the axis of {name!r} first; or say where it is by data_plates={{'x': ({name!r},)}}; or pass"
        " autoregressive=False, where elements read no draws",
    )
