"""Elements of a plate must not depend on one another, as each has a weight of its own.

A program can break this, and compute what belongs to one element from latents of others (by a cumulative sum, say). So
the latents of half of the elements are exchanged, and no element may then have another log density than it has with
its own latents.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.core.errors import fail
from rws_jax.core.sites import Trace, latent_sites
from rws_jax.core.trees import is_traced
from rws_jax.programs.density import Units
from rws_jax.programs.run import Draws

_ENOUGH = 16  # elements that are exchanged
_MAX_DRAWS = 8


class SiteOf(NamedTuple):
    """A site of one of the programs."""

    role: str
    name: str


def check_independent(
    units: Units,
    draw: Callable[[int], Trace],
    log_densities: Callable[[Draws], dict[SiteOf, jax.Array]],
) -> None:
    """What is drawn for one element of a plate must not change the log density of another.

    Args:
      units: the elements, which have log-weights of their own.
      draw: runs the guide as the particle of a number.
      log_densities: of each site for each unit, at given draws.
    """
    num = math.prod(units.shape)
    mine, others = draw(0), draw(1)
    if is_traced((Draws.of(mine), Draws.of(others))):
        return  # not known yet
    exchanged = Draws.of(others)
    for number in range(2, _MAX_DRAWS):
        differs = _differs(units, mine, exchanged)
        if differs.all() or differs.sum() >= _ENOUGH:
            break
        exchanged = _chosen(units, mine, differs, exchanged, Draws.of(draw(number)))  # a coin may come up as before
    half = np.random.default_rng(0).permutation(num).reshape(units.shape) < num // 2
    before, after = log_densities(Draws.of(mine)), log_densities(exchanged)
    for site, found in log_densities(_chosen(units, mine, half, exchanged, Draws.of(mine))).items():
        if not np.allclose(found, np.where(half, after[site], before[site]), rtol=1e-4, atol=1e-3, equal_nan=True):
            _fail_dependent(site, units)


def _chosen(units: Units, run: Trace, is_first: np.ndarray, first: Draws, second: Draws) -> Draws:
    """Latents of the one particle for some units, of the other for the rest."""
    choose = lambda name, site: jnp.where(units.beside(is_first, site), first.latents[name], second.latents[name])
    return first._replace(latents={name: choose(name, site) for name, site in latent_sites(run).items()})


def _differs(units: Units, run: Trace, others: Draws) -> np.ndarray:
    """For which units two particles differ in some latent."""
    differs = np.zeros(units.shape, bool)
    for name, site in latent_sites(run).items():
        events = tuple(range(-site["fn"].event_dim, 0))
        differs |= np.asarray(units.sum(jnp.any(site["value"] != others.latents[name], axis=events).astype(float)) > 0)
    return differs


def _fail_dependent(site: SiteOf, units: Units) -> NoReturn:
    fail(
        ValueError,
        f"elements of a plate depend on one another at site {site.name!r} of the {site.role}",
        expected="log densities of each element that depend on latents of that element alone, as it has a weight of"
        " its own",
        found=f"log densities of shape {units.shape} that change with latents of other elements",
        hint="draw them together, by to_event() in place of the plate, or one after the other, by a"
        " numpyro.contrib.control_flow.scan in its place",
    )
