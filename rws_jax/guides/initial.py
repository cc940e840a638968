"""The first weights of a compiled guide, from what dreams of its model have met."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from rws_jax.checks.guides import check_names, fail_plate
from rws_jax.guides.arguments import axes_of
from rws_jax.guides.axes import SCAN, Names, described, gathered, own_dims
from rws_jax.guides.dreams import Dreams, DreamtSite
from rws_jax.guides.leaves import as_floats
from rws_jax.guides.networks import Tree, linear, new_affine, new_recurrent
from rws_jax.guides.options import GuideOptions
from rws_jax.guides.units import rows, units_of

_NOISE = 0.02  # of the last layers: the guide starts as the prior, but for this

Units = dict[tuple[str, str], Tree]  # shift and scale of numbers, by what they are and of which argument or site


@dataclass(frozen=True)
class Architecture:
    """Which networks a guide has, and how large they are."""

    dreams: Dreams
    leaves: dict[str, Any]  # arguments that hold numbers
    options: GuideOptions

    def tree(self, rng_key: jax.Array, num_embedded: int = 0) -> Tree:
        """First weights of all networks: each has a key of its own, by its name.

        Args:
          rng_key: JAX random key.
          num_embedded: how many numbers the user's network makes of a datum, if there is one.
        """
        self._check()
        return self._compiled(rng_key, self._units, num_embedded)

    def _check(self) -> None:
        """Options name what there is, and elements of units need not read one another."""
        sites = self.dreams.sites
        check_names("networks", self.options.networks, sites, "the latent sites that dreams have met")
        check_names("data_plates", self.options.data_plates, self.leaves, "the arguments")
        data = [place for places in self.dreams.data.values() for place in places]
        plates = {name for each in (*sites.values(), *data) for name, _ in each.frames}
        named = {name for names in self.options.data_plates.values() for name in names}
        check_names("data_plates", named, plates, "the plates")
        around = self._around_all.intersection(*(frozenset(name for name, _ in place.frames) for place in data))
        for site in (sites[name] for name in self._read_later):
            for plate in site.place.plates:
                if plate.size > 1 and plate.name in around - self._of_data:
                    fail_plate(plate.name, plate.size, self.leaves)

    @cached_property
    def _compiled(self) -> Callable[..., Tree]:
        """Weights, as a function of all that is no shape; `init` asks several times."""
        return jax.jit(self._tree, static_argnums=2)

    def _tree(self, rng_key: jax.Array, units: Units, num_embedded: int) -> Tree:
        def key_of(*names: str) -> jax.Array:
            return jax.random.fold_in(rng_key, zlib.crc32("/".join(names).encode()) & 0x7FFFFFFF)

        arguments = {
            described(name, self.axes[name]): self._of_argument(key_of("data", name), units["data", name])
            for name in self.leaves
        }
        if self.options.embed is not None:
            arguments = {self.embedded: {"weights": linear(key_of("embed"), num_embedded, self.hidden)}}
        data = {"arguments": arguments} | ({} if not arguments else self._trunk(key_of("data")))
        sites = [name for name in self.dreams.sites if self._has_proposals(name)]
        read = [name for name in sites if name in self._read_later]
        latents = {name: self._of_latent(key_of("latents", name), units["latents", name]) for name in read}
        proposals = {name: self._head(key_of("proposals", name), name, units) for name in sites}
        scans = {name: self._of_scan(key_of("scans", name), name) for name in dict.fromkeys(self._scans.values())}
        return {"data": data, "latents": latents, "proposals": proposals, "scans": scans}

    @cached_property
    def axes(self) -> dict[str, tuple[Names, ...]]:
        """Which plates and scans the first axes of each argument belong to."""
        return axes_of(self.leaves, self.dreams, self.options.data_plates)

    @property
    def hidden(self) -> int:
        """Units of a layer."""
        return self.options.hidden

    @property
    def embedded(self) -> str:
        """The key of what the user's network makes of all arguments: of one datum of each that has an axis of data."""
        along = next((axes[:1] for axes in self.axes.values() if axes), ())
        return "; ".join(described(name, along if axes[:1] == along else ()) for name, axes in self.axes.items())

    @cached_property
    def _of_data(self) -> Names:
        if self.options.embed is not None:
            return next((axes[0] for axes in self.axes.values() if axes), frozenset())
        return frozenset[str]().union(*(names for axes in self.axes.values() for names in axes))

    @cached_property
    def _lengths(self) -> set[int]:
        """Lengths of the axes of arguments that a scan runs along."""
        if self.options.embed is not None:
            return set()
        axes = {name: zip(axes, jnp.shape(self.leaves[name]), strict=False) for name, axes in self.axes.items()}
        return {length for of_leaf in axes.values() for names, length in of_leaf if SCAN in names}

    @cached_property
    def _scans(self) -> dict[str, str]:
        """The scan that each site is in, of those that are in one."""
        return {name: site.scan for name, site in self.dreams.sites.items() if site.scan}

    @cached_property
    def _around_all(self) -> Names:
        """Plates around all latents, which have nothing to say of one another's data."""
        around = [frozenset(name for name, _ in site.frames) for site in self.dreams.sites.values()]
        return frozenset.intersection(*around) if around else frozenset()

    @property
    def _orders(self) -> list[list[str]]:
        """The sites of each dream, without those that keep their priors."""
        return [[name for name in order if self._has_proposals(name)] for order in self.dreams.orders]

    def _has_proposals(self, name: str) -> bool:
        return self.dreams.sites[name].place.family is not None

    @cached_property
    def _read_earlier(self) -> set[str]:
        """Sites that have others before them, in some dream."""
        later = {name for order in self._orders for name in order[1:]}
        return later | self._scans.keys() if self.options.autoregressive else set()

    @cached_property
    def _read_later(self) -> set[str]:
        """Sites that have others after them, in some dream."""
        earlier = {name for order in self._orders for name in order[:-1]}
        return earlier | self._scans.keys() if self.options.autoregressive else set()

    def _own_dims(self, site: DreamtSite) -> list[int]:
        of_data = [plate.dim for plate in site.place.plates if plate.name in self._of_data]
        return own_dims(site.place.fn.batch_shape, of_data)

    @cached_property
    def _units(self) -> Units:
        """Those of arguments, of latents and of priors, from dreams or, of what is not dreamt, from its own values."""
        units: Units = {}
        for name, leaf in self.leaves.items():
            dreamt = self.dreams.values.get(("data", name), [leaf[None] if hasattr(leaf, "ndim") else [leaf]])
            units["data", name] = units_of([rows(as_floats(value), 1 + len(self.axes[name])) for value in dreamt])
        for (what, name), values in self.dreams.values.items():
            if what != "data":
                units[what, name] = units_of([self._of_elements(name, value) for value in values])
        return units

    def _of_elements(self, name: str, value: jax.Array) -> jax.Array:
        """A row of numbers for each dream, step and element."""
        site = self.dreams.sites[name]
        own, batch_shape = self._own_dims(site), site.place.fn.batch_shape
        extra = value.ndim - 1 - len(batch_shape)  # dreams, and steps of scans
        whole = jnp.broadcast_to(value, (*value.shape[:extra], *batch_shape, value.shape[-1]))
        return rows(gathered(whole, [extra + dim for dim in own], extra + len(batch_shape)), -1)

    def _of_argument(self, rng_key: jax.Array, units: Tree) -> Tree:
        return units | {"weights": linear(rng_key, len(units["shift"]), self.hidden)}

    def _trunk(self, rng_key: jax.Array) -> Tree:
        of_hidden, of_sequence, of_groups = jax.random.split(rng_key, 3)
        tree = {"bias": jnp.zeros(self.hidden), "hidden": new_affine(of_hidden, self.hidden, self.hidden)}
        sites = [site for name, site in self.dreams.sites.items() if self._has_proposals(name)]
        if self.options.embed is None and any(map(self._reads_a_sequence, sites)):
            tree["sequence"] = new_recurrent(of_sequence, self.hidden, self.hidden)
        if any(map(self._is_in_groups, sites)):
            tree["groups"] = new_affine(of_groups, self.hidden, self.hidden)
        return tree

    def _reads_a_sequence(self, site: DreamtSite) -> bool:
        """Whether an argument lies along a scan that the site is not in."""
        for name, axes in self.axes.items():
            around = [sizes[0] for frame, sizes in site.frames if frame == SCAN]
            for names, length in zip(axes, jnp.shape(self.leaves[name]), strict=False):
                if SCAN in names and length not in around:
                    return True
                around = around if SCAN not in names else [n for i, n in enumerate(around) if i != around.index(length)]
        return False

    def _is_in_groups(self, site: DreamtSite) -> bool:
        """Whether a site pools an argument over a plate within another."""
        around = {name for name, _ in site.frames}
        return any(sum(not names & around for names in axes) > 1 for axes in self.axes.values())

    def _of_latent(self, rng_key: jax.Array, units: Tree) -> Tree:
        return units | new_affine(rng_key, len(units["shift"]), self.hidden)

    def _head(self, rng_key: jax.Array, name: str, units: Units) -> Tree:
        site = self.dreams.sites[name]
        assert site.place.family is not None
        blocks: dict[str, int] = {}
        tree: Tree = {}
        if self.leaves or self.options.embed is not None:
            over = [plate.name for plate in site.place.plates if plate.name in self._of_data - self._around_all]
            blocks = {"data": self.hidden} | ({f"data over {', '.join(over)}": self.hidden} if over else {})
        if name in self._read_earlier:
            blocks["latents"] = self.hidden
        if self.options.autoregressive and ("prior", name) in self.dreams.varying:
            tree = {"prior": units["prior", name]}
            blocks["prior"] = len(tree["prior"]["shift"])
        *of_blocks, of_hidden, of_outputs = jax.random.split(rng_key, len(blocks) + 2)
        sizes = zip(of_blocks, blocks.items(), strict=True)
        tree["inputs"] = {block: linear(key, num, self.hidden) for key, (block, num) in sizes}
        tree["bias"] = jnp.zeros(self.hidden)
        if name in self.options.networks:
            return tree
        num_own = math.prod(site.place.fn.batch_shape[dim] for dim in self._own_dims(site))
        tree["hidden"] = new_affine(of_hidden, self.hidden, self.hidden)
        tree["outputs"] = new_affine(of_outputs, self.hidden, site.place.family.size * num_own, _NOISE)
        return tree

    def _of_scan(self, rng_key: jax.Array, name: str) -> Tree:
        of_forward, of_backward, of_outputs = jax.random.split(rng_key, 3)
        networks: Tree = {}
        sites = [site for site, scan in self._scans.items() if scan == name and self._has_proposals(site)]
        if self.options.autoregressive and sites:
            networks["forward"] = new_recurrent(of_forward, self.hidden, self.hidden)
        frames = [frame for site in sites for frame in self.dreams.sites[site].frames]
        if self._lengths & {sizes[0] for kind, sizes in frames if kind == SCAN}:
            cell = new_recurrent(of_backward, self.hidden, self.hidden)
            networks["backward"] = {"cell": cell, "outputs": new_affine(of_outputs, self.hidden, self.hidden)}
        return networks
