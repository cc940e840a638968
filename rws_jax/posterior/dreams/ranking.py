"""Ranks of dreams among the draws of a guide: every scalar of every latent, and log densities of all latents together.

A dream's rank is the number of draws below it; where draws equal it, a number chosen at random from all those that the
rank could be. It is uniform on 0 to L if the draws come from the posterior.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.core.supports import mask_of_values
from rws_jax.estimators import weights
from rws_jax.posterior.dreams.dreamt import Comparison

Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of latents by name, hashable

_ROUNDING = 64  # rounding errors that log densities of one and the same value may differ by, run in different ways


class Compared(NamedTuple):
    """How draws compare with their dream, arrays of one shape; log-weights have ones in the place of some dims.

    What is not a number is neither below nor above another: there both are NaN.
    """

    below: Any
    tied: Any
    log_w: Any


class Quantities(NamedTuple):
    """Something of each quantity, by latent site and by log density; lists of scalars by site where Python branches."""

    sites: dict[str, Any]
    densities: dict[str, Any]


@dataclass(frozen=True)
class RankStatistic:
    """Compares one draw with its dream: `sites`, with their shapes, where Python branches, and else all there are.

    A site that a draw or a dream lacks counts as minus infinity there: so whether it is there is compared too. What is
    masked has no density, and no posterior that the guide could be trained to: all draws of it are tied.
    """

    sites: Shapes = ()

    def __call__(self, comparison: Comparison) -> Quantities:
        """Compare by site, and by log q(z | x) and log p(z, x)."""
        scored, dreamt, log_w = comparison.scored, comparison.dream_scored, comparison.scored.log_weights
        pairs = {"log_q": (scored.log_q, dreamt.log_q), "log_p": (scored.log_p, dreamt.log_p)}
        densities = {name: _compare(*pair, log_w=log_w, close=True) for name, pair in pairs.items()}
        draw, dream = (_scored_part(z, comparison) for z in (comparison.latents, comparison.dream.draws.latents))
        if comparison.alone:
            elements = lambda name, shape: zip(*_elements(name, shape, draw, dream), strict=True)
            of_site = lambda name, shape: [_compare(*pair, log_w=log_w) for pair in elements(name, shape)]
            return Quantities({name: of_site(name, shape) for name, shape in self.sites}, densities)
        beside = lambda name: scored.units.beside(log_w, comparison.guide_run[name])
        return Quantities({name: _compare(draw[name], dream[name], log_w=beside(name)) for name in dream}, densities)


@dataclass(frozen=True)
class RankSummary:
    """The expected numbers of draws, out of L, that lie below a dream and that equal it, weighted or not."""

    weighted: bool

    def __call__(self, compared: Quantities) -> Quantities:
        """Sum over the draws of one dream."""
        return jax.tree.map(self._numbers, compared, is_leaf=lambda node: isinstance(node, Compared))

    def _numbers(self, compared: Compared) -> tuple[jax.Array, jax.Array]:
        if not self.weighted:
            return compared.below.sum(axis=0), compared.tied.sum(axis=0)
        # Of a dead unit all weights are zero: it has no posterior, and its dreams rank lowest.
        w = weights.normalise(compared.log_w) * len(compared.log_w)
        return (w * compared.below).sum(axis=0), (w * compared.tied).sum(axis=0)


def ranks_of(rng_key: jax.Array, below: Any, tied: Any, num_samples: int) -> np.ndarray:
    r"""Ranks, ties broken at random.

    .. math:: \text{rank} = \lfloor L \, W_< + U (1 + L \, W_=) \rfloor

    for the weights :math:`W_<` of draws below and :math:`W_=` of draws that are tied, and U uniform. With equal weights
    it is uniform on 0 to L if dream and draws are exchangeable. With others it is as L grows: it then tends to L times
    the posterior distribution function, at random within its jumps.

    Args:
      rng_key: JAX random key.
      below: number of draws below the dream, L times their weight.
      tied: the same of draws that equal it.
      num_samples: L.
    """
    below, tied = (np.asarray(numbers, np.float64) for numbers in (below, tied))
    uniform = np.asarray(jax.random.uniform(rng_key, below.shape), np.float64)
    return np.clip(np.floor(below + uniform * (1.0 + tied)), 0, num_samples).astype(np.int32)


def _scored_part(latents: dict[str, jax.Array], comparison: Comparison) -> dict[str, jax.Array]:
    """Latents with zeros where they are masked."""
    run = comparison.guide_run
    masks = {name: mask_of_values(run[name]["fn"]) for name in latents if name in run}
    hide = lambda mask, z: jnp.where(jnp.broadcast_to(mask, z.shape), z, jnp.zeros_like(z))
    return {name: z if masks.get(name) is None else hide(masks[name], z) for name, z in latents.items()}


def _compare(draw: Any, dream: Any, *, log_w: Any, close: bool = False) -> Compared:
    tied = draw == dream
    if close:  # log densities of one value, which rounding may have made two
        size = jnp.where(jnp.isfinite(dream), jnp.maximum(1.0, jnp.abs(dream)), 0.0)
        tied |= jnp.abs(draw - dream) <= _ROUNDING * jnp.finfo(size.dtype).eps * size
    as_numbers = lambda truths: jnp.where(jnp.isnan(draw) | jnp.isnan(dream), jnp.nan, truths)
    return Compared(as_numbers((draw < dream) & ~tied), as_numbers(tied), log_w)


def _elements(name: str, shape: tuple[int, ...], *latents: dict[str, jax.Array]) -> list[list[jax.Array]]:
    absent = jnp.full(shape, -jnp.inf)
    return [list(jnp.ravel(jnp.asarray(values.get(name, absent), absent.dtype))) for values in latents]
