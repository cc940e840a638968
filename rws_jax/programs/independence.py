"""Elements of a plate must not depend on one another, as each has a weight of its own.

A program can break this, and compute what belongs to one element from latents of others (by a cumulative sum, say). So
the latents of half of the elements are exchanged, and no element may then have another log density than it has with
its own latents.
"""

import math
from collections.abc import Callable, Collection
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.core.errors import fail
from rws_jax.core.sites import Trace, latent_sites
from rws_jax.core.trees import is_known
from rws_jax.programs.density import Units, log_density
from rws_jax.programs.run import Draws

Runs = tuple[Trace, Trace]  # of model and guide
_ENOUGH = 16  # elements that are exchanged
_MAX_DRAWS = 8


class SiteOf(NamedTuple):
    """A site of one of the programs."""

    role: str
    name: str


def check_independent(
    units: Units,
    runs: Runs,
    draw: Callable[[int], Trace],
    run_at: Callable[[Draws], Runs],
    sites: Collection[str] | None = None,
) -> None:
    """What is drawn for one element of a plate must not change the log density of another.

    Args:
      units: the elements, which have log-weights of their own.
      runs: traces of model and guide, at what one particle has drawn.
      draw: runs the guide as the particle of a number.
      run_at: runs both programs at given draws.
      sites: those in the plates of these elements; None for all.
    """
    if sites is not None:
        return check_independent(
            units,
            _of_sites(runs, sites),
            draw,
            lambda draws: _of_sites(run_at(draws._replace(latents=Draws.of(runs[1]).latents | draws.latents)), sites),
        )
    mine, guide_run, num = Draws.of(runs[1]), runs[1], math.prod(units.shape)
    others = Draws.of(draw(1))
    if not is_known((mine, others)):
        return
    for number in range(2, _MAX_DRAWS):
        differs = _differs(units, guide_run, others)
        if differs.all() or differs.sum() >= _ENOUGH:
            break
        others = _chosen(units, guide_run, differs, others, Draws.of(draw(number)))  # a coin may come up as before
    half = np.random.default_rng(0).permutation(num).reshape(units.shape) < num // 2
    before = _log_densities(units, runs, mine)
    for exchanged in (half, ~half):
        draws = _chosen(units, guide_run, exchanged, others, mine)
        for site, found in _log_densities(units, run_at(draws), draws).items():
            kept = np.where(exchanged, found, before[site])
            if not np.allclose(found, kept, rtol=1e-4, atol=1e-3, equal_nan=True):
                _fail_dependent(site, units)


def _of_sites(runs: Runs, sites: Collection[str]) -> Runs:
    """Traces of some sites alone."""
    model_run, guide_run = ({name: site for name, site in run.items() if name in sites} for run in runs)
    return model_run, guide_run


# All by numpy, as JAX would compile each operation, but for log densities, each of which is compiled as a whole.
_log_prob = jax.jit(lambda fn, value: log_density(fn, value, fn))


def _log_densities(units: Units, runs: Runs, draws: Draws) -> dict[SiteOf, np.ndarray]:
    """Of each site for each unit."""
    log_densities = {}
    for role, run in zip(("model", "guide"), runs, strict=True):
        for name, site in run.items():
            if site["type"] == "sample" and not site.get("is_constant"):
                fn, value = site["fn"], draws.latents.get(name, site["value"])
                try:
                    log_prob = _log_prob(fn, value)
                except Exception:  # not every distribution of a user's is a tree
                    log_prob = log_density(fn, value, fn)
                log_densities[SiteOf(role, name)] = units.sum(np.asarray(log_prob))
    return log_densities


def _chosen(units: Units, run: Trace, is_first: np.ndarray, first: Draws, second: Draws) -> Draws:
    """Latents of the one particle for some units, of the other for the rest."""
    latents = {}
    for name, site in latent_sites(run).items():
        is_own = units.beside(is_first, site)
        latents[name] = jnp.asarray(np.where(is_own, first.latents[name], second.latents[name]))
    return first._replace(latents=latents)


def _differs(units: Units, run: Trace, others: Draws) -> np.ndarray:
    """For which units two particles differ in some latent."""
    differs = np.zeros(units.shape, bool)
    for name, site in latent_sites(run).items():
        events = tuple(range(-site["fn"].event_dim, 0))
        of_events = np.any(np.asarray(site["value"]) != np.asarray(others.latents[name]), axis=events)
        differs |= units.sum(of_events.astype(np.float32)) > 0
    return differs


def _fail_dependent(site: SiteOf, units: Units) -> NoReturn:
    fail(
        ValueError,
        f"elements of a plate depend on one another at site {site.name!r} of the {site.role}",
        expected="log densities of each element that depend on latents of that element alone, as it has a weight of"
        " its own",
        found=f"log densities of shape {units.shape} that change with latents of other elements",
        hint="draw them together, by to_event() in place of the plate, or one after the other, by a"
        " numpyro.contrib.control_flow.scan in its place; normalise what depends on draws by LayerNorm, not by"
        " BatchNorm",
    )
