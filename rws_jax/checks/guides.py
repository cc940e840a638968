"""What a model must be for a guide to be compiled from it, and the messages that say so."""

from collections.abc import Sequence
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
            expected=f"a vector of shape ({expected},), zeros of which are the prior",
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
