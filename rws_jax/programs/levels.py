"""Plates around some latents and not around others: levels, whose elements are independent given what is outside.

The plates common to all sites are those of units. The other plates that latents are in make a tree: the root has the
latents in no such plate, and a level lies below another one if it has its plates and some more.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
from numpyro.distributions import Delta

from rws_jax.checks.levels import fail_crossed, fail_no_inner_plate
from rws_jax.core.sites import Site, Trace, base_distribution, latent_sites, plate_sizes, sample_sites
from rws_jax.programs.density import Units


@dataclass(frozen=True)
class Level:
    """Latents that are in the same plates, and what is observed of them."""

    plates: frozenset[Any]  # frames of `cond_indep_stack`, without those of units
    units: Units  # whose elements have log densities of their own: those of the units, and of these plates
    chain: tuple[int, ...]  # the numbers of the levels around this one, from the outermost below the root, and its own
    parent: int | None  # the next one around it; None for the root
    summed: tuple[int, ...]  # the dims of the plates that the parent does not have
    sites: frozenset[str]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Levels:
    """All levels of two programs, parents before their children."""

    units: Units
    all: tuple[Level, ...]
    event_dims: tuple[tuple[str, int], ...]  # of each latent site

    @classmethod
    def of(cls, units: Units, model_run: Trace, guide_run: Trace) -> "Levels":
        """Infer the levels; plates that cross, or none but those of units, are errors."""
        unit_plates = units.frames
        plates_of = {
            name: frozenset(plate_sizes(site)) - unit_plates
            for run in (guide_run, model_run)
            for name, site in sample_sites(run).items()
            if not site.get("is_constant")
        }
        drawn = {name for name, site in latent_sites(guide_run).items() if not _is_fixed(site)}
        own = {plates_of[name] for name in drawn if name in plates_of}
        sets = sorted(own | {frozenset()}, key=lambda plates: (len(plates), _order(plates)))
        if len(sets) == 1:
            fail_no_inner_plate([frame.name for frame in unit_plates])
        levels: list[Level] = []
        for plates in sets:
            around = [number for number, level in enumerate(levels) if level.plates < plates]
            parent = max(around, key=lambda number: len(levels[number].chain), default=None)
            outer = frozenset() if parent is None else levels[parent].plates
            sizes = tuple(sorted({*units.sizes, *((frame.dim, frame.size) for frame in plates)}))
            levels.append(
                Level(
                    plates,
                    Units(sizes, units.scale, unit_plates | plates),
                    chain=() if parent is None else (*levels[parent].chain, len(levels)),
                    parent=parent,
                    summed=tuple(sorted(frame.dim for frame in plates - outer)),
                    sites=frozenset(name for name, within in plates_of.items() if _innermost(within, sets) == plates),
                )
            )
        for name, within in plates_of.items():
            _check_chain(name, within, sets)
        event_dims = tuple((name, site["fn"].event_dim) for name, site in latent_sites(guide_run).items())
        return cls(units, tuple(levels), event_dims)

    @property
    def num_dims(self) -> int:
        """How many dims from the right the arrays of all levels have."""
        return max(len(level.units.batch_shape) for level in self.all)

    def sites_within(self, level: Level) -> frozenset[str]:
        """The sites in the plates of a level."""
        return frozenset().union(*(other.sites for other in self.all if other.plates >= level.plates))

    def laid(self, level: Level, of_elements: jax.Array) -> jax.Array:
        """An array of the shape of a level's units, with each plate at its own dim and ones between them."""
        shape = level.units.batch_shape
        return of_elements.reshape((1,) * (self.num_dims - len(shape)) + shape)


def _is_fixed(site: Site) -> bool:
    """Whether a site of the guide has what is drawn elsewhere, as those of automatic guides of all latents together."""
    return isinstance(base_distribution(site["fn"]), Delta)


def _innermost(within: frozenset[Any], sets: Iterable[frozenset[Any]]) -> frozenset[Any]:
    return max((plates for plates in sets if plates <= within), key=len)


def _check_chain(name: str, within: frozenset[Any], sets: list[frozenset[Any]]) -> None:
    """The levels around a site contain one another."""
    around = [plates for plates in sets if plates <= within]
    for outer, inner in pairwise(around):
        if not outer < inner:
            fail_crossed(name, [sorted(frame.name for frame in plates) for plates in (outer, inner)])


def _order(plates: frozenset[Any]) -> list[tuple[str, int]]:
    return sorted((frame.name, frame.dim) for frame in plates)
