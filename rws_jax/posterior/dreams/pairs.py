"""Given pairs of latents and data in the place of dreams: those of a simulator that is no NumPyro program, say."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from rws_jax.checks.pairs import check_num_pairs, check_pair, check_pairs, split_pair
from rws_jax.core.sites import Trace
from rws_jax.estimators.sleep import Dream, DreamParticle
from rws_jax.programs.program import Index, Programs
from rws_jax.programs.run import Draws, replay

# Latents and data by site, together or latents first and data second, arrays with an axis of pairs in front.
Pairs = dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]


_OF_PROGRAMS = [field.name for field in fields(Programs)]


@partial(jax.tree_util.register_dataclass, data_fields=[*_OF_PROGRAMS, "pairs"], meta_fields=[])
@dataclass(frozen=True)
class ProgramsWithPairs(Programs):
    """Programs, and pairs that are taken for dreams of the model."""

    pairs: Pairs

    @classmethod
    def of(cls, programs: Programs, pairs: Any) -> "ProgramsWithPairs":
        """Add pairs to programs."""
        check_pairs(pairs)
        as_tree: Any = dict(pairs) if isinstance(pairs, Mapping) else tuple(map(dict, pairs))
        pairs = jax.tree.map(jnp.asarray, as_tree)
        return cls(**{name: getattr(programs, name) for name in _OF_PROGRAMS}, pairs=pairs)

    def check_num(self, num: int | None) -> int:
        """The number of pairs, which an option must not contradict."""
        return check_num_pairs(num, len(jax.tree.leaves(self.pairs)[0]))


class GivenPairs(DreamParticle):
    """Takes the pair of each index in place of a dream, and runs the model on it."""

    def dream(self, programs: Programs, index: Index) -> tuple[Trace, Dream]:
        """Take a pair; a dream says which sites there have to be, and of which shapes."""
        model_run, like = super().dream(programs, index)
        pairs = cast(ProgramsWithPairs, programs).pairs
        pair = jax.tree.map(lambda leaf: leaf[index.particle], pairs)
        latents, data = split_pair(model_run, like, pair) if isinstance(pair, dict) else pair
        check_pair(like, latents, data)
        dream = Dream(Draws(latents, {}), data)
        return replay(programs.model.stopped(), programs.arguments, index, dream.draws, data=data), dream
