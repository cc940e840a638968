r"""Nested particles: K of what is outside of inner plates and, for each, L of each element of these plates.

For globals g, and in a plate locals :math:`z_i` with data :math:`x_i`,

.. math:: \log \hat Z_{ik} = \log \frac1L \sum_l \frac{p(z_{ikl}, x_i \mid g_k)}{q(z_{ikl} \mid g_k, x)}, \qquad
    \log w_k = \log \frac{p(g_k)}{q(g_k \mid x)} + \sum_i \log \hat Z_{ik} .

The mean of :math:`w_k` over k has the evidence as its expectation. The guide of globals learns by :math:`\bar w_k`,
that of locals by :math:`\bar w_k \bar w_{l \mid ik}`. With common random numbers these are particles of massively
parallel importance weighting (Heap and Aitchison 2023, arXiv 2305.11022).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.checks.levels import fail_branching, fail_depends
from rws_jax.core.dependence import dependence
from rws_jax.core.errors import is_own
from rws_jax.core.sites import Trace, sample_sites
from rws_jax.estimators import weights
from rws_jax.estimators.nested_choice import chosen
from rws_jax.estimators.nested_weights import NestedWeights, nested_weights, totals
from rws_jax.estimators.scored import Term
from rws_jax.estimators.wake import WakeParticle, WakeRuns, WeighedDraw
from rws_jax.estimators.weights import PerParticle, WeightSummary
from rws_jax.programs.density import ProposalDists, dists_of, own_dists
from rws_jax.programs.levels import Level, Levels
from rws_jax.programs.program import Index, LocalIndex, Programs
from rws_jax.programs.run import Draws

_CHOICE_KEY = 0x6C6F6361  # folded into the guide's key, for the choice of local particles


@partial(jax.tree_util.register_dataclass, data_fields=["log_p", "log_q"], meta_fields=["levels"])
@dataclass(frozen=True)
class NestedScored:
    """Log densities of nested particles in nats, for each level, as `rws_jax.estimators.nested_weights` has them."""

    log_p: list[jax.Array]
    log_q: list[jax.Array]
    levels: Levels

    @property
    def scale(self) -> float:
        """Size / subsample size of the units."""
        return self.levels.units.scale

    @property
    def own_log_weights(self) -> list[jax.Array]:
        """Log-weights of each level's own sites; the bound does not train the guide, through log q."""
        return [weights.log_weights(p, lax.stop_gradient(q)) for p, q in zip(self.log_p, self.log_q, strict=True)]

    @property
    def log_weights(self) -> PerParticle:
        """Of the outermost particles, shape ``(particles, *units)``: constant in the guide's parameters."""
        log_w = totals(self.own_log_weights, self.levels.all, self.levels.num_dims)[0]
        return self._of_units(log_w)

    @property
    def nested_weights(self) -> NestedWeights:
        """Weights of all particles, as constants: they train neither theta nor phi."""
        return nested_weights(lax.stop_gradient(self.own_log_weights), self.levels.all, self.levels.num_dims)

    @property
    def terms(self) -> list[Term]:
        """What the guide learns from: the draws of each level."""
        _, w, baseline = self.nested_weights
        return [Term(*arrays) for arrays in zip(self.log_q, w, baseline, strict=True)]

    @property
    def summary(self) -> WeightSummary:
        """How the weights of each unit are spread over the outermost particles."""
        return weights.summarise(lax.stop_gradient(self.log_weights))  # reported, and trains nothing

    def _of_units(self, x: jax.Array) -> jax.Array:
        leading = x.shape[: x.ndim - self.levels.num_dims]
        return x.reshape(*leading, *self.levels.units.shape)


@dataclass(frozen=True)
class NestedParticle:
    """What one outermost particle computes: its own draw, and L particles for each element of inner plates."""

    wake: WakeParticle
    num_local: int
    common: bool  # whether random numbers of local particles are the same for all particles further out

    def __call__(self, programs: Programs, index: Index) -> NestedScored:
        """Draw and score."""
        levels = self.levels(programs, index)

        def score(runs: WakeRuns, draws: Draws) -> list[tuple[jax.Array, jax.Array]]:
            return [_log_densities(levels, level, runs, draws) for level in levels.all]

        pairs = self.mapped(score, levels, programs, index)
        return NestedScored([log_p for log_p, _ in pairs], [log_q for _, log_q in pairs], levels)

    def levels(self, programs: Programs, index: Index) -> Levels:
        """The levels of both programs, from a run that is traced and computes nothing."""
        if index.alone:
            fail_branching()

        def run() -> Levels:
            runs, _ = self.wake.drawn(programs, index)
            return Levels.of(self.wake.units_of(runs), runs.model, runs.guide)

        return jax.eval_shape(run)

    def mapped(
        self, score: Callable[[WakeRuns, Draws], list[Any]], levels: Levels, programs: Programs, index: Index
    ) -> list[Any]:
        """Scores of each level, side by side for all of its particles: an axis for each level of its chain.

        Each level is mapped over by itself. What is outside of its plates may not depend on its particles, which JAX
        holds it to, and is computed once.
        """
        chains = tuple((level.plates, tuple(number - 1 for number in level.chain)) for level in levels.all[1:])

        def run(*numbers: jax.Array) -> tuple[WakeRuns, Draws]:
            own = index._replace(local=LocalIndex(numbers, self.num_local, self.common, chains))
            return self.wake.drawn(programs, own)

        mapped = lambda *numbers: score(*run(*numbers))
        for number in range(len(levels.all) - 1, 0, -1):
            mapped = self._mapped_once(mapped, [0 if number in level.chain else None for level in levels.all])
        try:
            return mapped()
        except ValueError as error:
            if not is_own(error):
                _check_outside(run, levels)
            raise

    def _mapped_once(self, at: Callable[..., list[Any]], out_axes: list[int | None]) -> Callable[..., list[Any]]:
        return lambda *outer: jax.vmap(lambda own: at(*outer, own), out_axes=out_axes)(jnp.arange(self.num_local))

    def weighed_draw(self, programs: Programs, index: Index) -> WeighedDraw:
        """Draw and weigh, and choose for each element one of its local particles by their weights.

        What is so drawn has the outermost particle's weight: averages over all of these estimate the posterior.
        """
        levels = self.levels(programs, index)

        def score(runs: WakeRuns, draws: Draws) -> list[tuple[jax.Array, jax.Array, Draws]]:
            pairs = [_log_densities(levels, level, runs, draws) for level in levels.all]
            return [(*pair, _draws_of(level, draws)) for pair, level in zip(pairs, levels.all, strict=True)]

        log_p, log_q, drawn = map(list, zip(*self.mapped(score, levels, programs, index), strict=True))
        scored = NestedScored(log_p, log_q, levels)
        rng_key = jax.random.fold_in(jax.random.fold_in(programs.guide.key_of(index), _CHOICE_KEY), index.particle)
        log_w = totals(scored.own_log_weights, levels.all, levels.num_dims)
        # The choice is a constant, as draws are.
        latents = chosen(rng_key, lax.stop_gradient(log_w), [draws.latents for draws in drawn], levels)
        draws = Draws(latents, drawn[0].plates)
        model_run = self.wake.run(programs, index, draws).model
        return WeighedDraw(draws, scored.log_weights, levels.units, model_run)


def _draws_of(level: Level, draws: Draws) -> Draws:
    """What is drawn in one level; all of a unit sees one minibatch."""
    latents = {name: value for name, value in draws.latents.items() if name in level.sites}
    return Draws(latents, draws.plates if level.parent is None else {})


def _log_densities(levels: Levels, level: Level, runs: WakeRuns, draws: Draws) -> tuple[jax.Array, jax.Array]:
    """Log p and log q of the sites of one level, for each element of its plates."""

    def of(run: Trace, dists: ProposalDists) -> jax.Array:
        sites = {name: site for name, site in sample_sites(run).items() if _belongs(name, site, level)}
        return levels.laid(level, level.units.log_density(sites, draws.latents, dists))

    return of(runs.model, dists_of(runs.guide)), of(runs.guide, own_dists)


def _belongs(name: str, site: dict[str, Any], level: Level) -> bool:
    return name in level.sites or (level.parent is None and bool(site.get("is_constant")))


def _check_outside(run: Callable[..., tuple[WakeRuns, Draws]], levels: Levels) -> None:
    """Name a site that depends on what is drawn in plates that it is outside of."""

    def log_densities(*numbers: jax.Array) -> dict[tuple[str, str], jax.Array]:
        runs, draws = run(*numbers)
        dists, found = dists_of(runs.guide), {}
        for role, program_run in (("model", runs.model), ("guide", runs.guide)):
            of_sites = levels.units.log_densities(sample_sites(program_run), draws.latents, dists)
            found |= {(role, name): log_density for name, log_density in of_sites.items()}
        return found

    inner = levels.all[1:]
    jaxpr, shapes = jax.make_jaxpr(log_densities, return_shape=True)(*[jnp.zeros((), int)] * len(inner))
    inputs: dict[tuple[str, str], set[int]] = jax.tree.structure(shapes).unflatten(dependence(jaxpr))
    for (role, name), numbers in inputs.items():
        own = next((level for level in levels.all if name in level.sites), levels.all[0])
        for number in numbers - {number - 1 for number in own.chain}:
            fail_depends(role, name, [frame.name for frame in inner[number].plates - own.plates])
