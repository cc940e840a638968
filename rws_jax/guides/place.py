"""A latent site of the model, as a guide proposes for it."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import Distribution

from rws_jax.checks.guides import check_proposable
from rws_jax.core.numpyro_internals import ActivePlate, active_plates, mask_of
from rws_jax.core.sites import Site
from rws_jax.guides.axes import Names, gathered, own_dims, scattered
from rws_jax.guides.proposals.arrays import stopped
from rws_jax.guides.proposals.elements import Elements
from rws_jax.guides.proposals.family import Family, family_of, why_none


@dataclass(frozen=True)
class Place:
    """The prior at a latent site, and how its batch dims relate to data."""

    fn: Distribution  # the prior, without a mask; that of all elements together, where no plate divides them
    elements: Distribution | None  # the prior of one element, where these are together
    mask: Any  # None if it has none
    family: Family | None  # None: it keeps its prior
    plates: tuple[ActivePlate, ...]
    data_plates: dict[int, str]  # those along which there are data, by dim
    own_dims: tuple[int, ...]  # batch dims, counted from the left, whose elements have outputs of their own

    @classmethod
    def of(cls, msg: Site, components: int, names: Names) -> "Place":
        """Where a message comes from.

        Args:
          msg: the message of a latent site.
          components: the number of components of mixtures.
          names: plates along which there are data.
        """
        check_proposable(msg)
        fn, mask = msg["fn"], None
        while isinstance(fn, dist.MaskedDistribution):
            mask = mask_of(fn) if mask is None else mask & mask_of(fn)
            fn = fn.base_dist
        sample_shape = msg["kwargs"].get("sample_shape", ())
        fn = fn.expand((*sample_shape, *fn.batch_shape)) if sample_shape else fn
        plates = tuple(active_plates())
        elements = None
        if not plates and mask is None and fn.batch_shape:
            fn, elements = fn.to_event(), fn  # all of its numbers may depend on one another
        of_data = {plate.dim: plate.name for plate in plates if plate.name in names}
        family, own = family_of(fn, components), tuple(own_dims(fn.batch_shape, of_data))
        return cls(fn, elements, mask, family, plates, of_data, own)

    @property
    def num_dims(self) -> int:
        """The number of batch dims."""
        return len(self.fn.batch_shape)

    @property
    def num_own(self) -> int:
        """How many elements have outputs of their own."""
        return math.prod(self.fn.batch_shape[dim] for dim in self.own_dims)

    @property
    def subsampling(self) -> float | None:
        """The scale that subsampled plates give to a log density."""
        scale = math.prod(plate.size / len(plate.indices) for plate in self.plates)
        return None if scale == 1.0 else scale

    @property
    def why_none(self) -> str | None:
        """Why the site keeps its prior, in words; None if it has proposals."""
        return why_none(self.fn) if self.family is None else None

    def gathered(self, value: jax.Array) -> jax.Array:
        """Numbers of each element, ``(*batch, n)``, those of elements that are not of data side by side."""
        return gathered(jnp.broadcast_to(value, (*self.fn.batch_shape, value.shape[-1])), self.own_dims, self.num_dims)

    def proposal(self, outputs: jax.Array) -> Distribution:
        """The proposal that the outputs of a network, ``(*batch, n)``, stand for."""
        assert self.family is not None
        fn = self.family.proposal(self.fn, scattered(outputs, self.own_dims, self.fn.batch_shape))
        fn = fn if self.elements is None else Elements(fn, stopped(self.elements))
        return fn if self.mask is None else fn.mask(self.mask)
