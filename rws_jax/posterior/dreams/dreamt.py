"""Dreams as data whose truth is known: for each dream of the model, draws of the guide that is shown it, both scored.

A statistic compares one draw with its dream, and a summary takes the draws of one dream together, so that no more is
kept of them than is asked for. Where Python branches on what is drawn, sites differ between draws, and a statistic has
to be a tree of scalars.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from rws_jax.checks import matching, sites
from rws_jax.checks.calibration import check_num_draws
from rws_jax.core.sites import Trace, latent_sites
from rws_jax.estimators.scored import Scored
from rws_jax.estimators.sleep import Dream, DreamParticle
from rws_jax.execution.data import Data
from rws_jax.options import ExecutionOptions
from rws_jax.posterior.running import run
from rws_jax.programs.density import Units, dists_of, own_dists
from rws_jax.programs.leaks import check_no_real_data, reads_data
from rws_jax.programs.program import Arguments, Index, Programs
from rws_jax.programs.run import Draws, replay, sample

T = TypeVar("T")

_NUM_TRIED = 8  # dreams that tell whether the guide reads data, where Python branches: on some paths it may not


class Dreamt(NamedTuple):
    """One dream as its model and guide have run on it."""

    programs: Programs  # with the arguments of one datum, if these are of many
    dream: Dream
    shown: Arguments  # what the guide is called with
    scored: Scored  # log p(z*, x*) and log q(z* | x*), shape `units`


class Comparison(NamedTuple):
    """A dream and one draw of the guide that is shown it."""

    dream: Dream
    dream_scored: Scored  # log p(z*, x*) and log q(z* | x*), shape `units`, or scalars where Python branches
    latents: dict[str, jax.Array]  # z, the draw
    scored: Scored  # log p(z, x*) and log q(z | x*), with `log_weights`
    guide_run: Trace
    alone: bool  # whether other draws may have other sites, as Python branches


@dataclass(frozen=True)
class DreamtParticle:
    """What one draw for one dream computes, numbered dream by dream: the statistic of both.

    Of programs of one datum among many, dream s has the arguments of datum s modulo their number.
    """

    dreamer: DreamParticle
    num_samples: int  # draws of the guide for each dream
    statistic: Callable[[Comparison], Any]
    data: Data

    def __call__(self, programs: Programs, index: Index) -> Any:
        """Dream, draw and compare."""
        dreamt = self.dream(programs, index._replace(particle=index.particle // self.num_samples))
        return self.compare(dreamt, index)

    def dream(self, programs: Programs, index: Index) -> Dreamt:
        """Dream, and score the dream."""
        programs = self.of_datum(programs, index.particle)
        model_run, dream = self.dreamer.dream(programs, index)
        guide_run, shown = self.dreamer.run(programs, index, dream, model_run)
        return Dreamt(programs, dream, shown, _scored(model_run, guide_run, dream.draws.latents, index))

    def of_datum(self, programs: Programs, number: jax.Array | int) -> Programs:
        """The programs with the arguments of the datum that a dream is of."""
        num_data = self.data.count(programs)
        return programs if num_data is None else self.data.take(programs, number % num_data)

    def compare(self, dreamt: Dreamt, index: Index) -> Any:
        """Draw from the guide, score the draw on the dreamt data, and compare it with the dream."""
        programs, dream = dreamt.programs, dreamt.dream
        guide_run = sample(programs.guide, dreamt.shown, index, dream.draws.plates)
        sites.check_guide(guide_run)
        draws = dream.draws._replace(latents=Draws.of(guide_run).latents)
        dists = dists_of(guide_run)
        model_run = replay(programs.model, programs.arguments, index, draws, proposal_dists=dists, data=dream.data)
        matching.check_match(model_run, guide_run)
        scored = _scored(model_run, guide_run, draws.latents, index)
        return self.statistic(Comparison(dream, dreamt.scored, draws.latents, scored, guide_run, index.alone))


@dataclass(frozen=True)
class _AllDraws:
    """What one dream computes: the summary of the statistics of all draws for it."""

    particle: DreamtParticle
    summary: Callable[[Any], Any]

    def __call__(self, programs: Programs, index: Index) -> Any:
        num, dreamt = self.particle.num_samples, self.particle.dream(programs, index)
        compare = lambda draw: self.particle.compare(dreamt, index._replace(particle=index.particle * num + draw))
        return self.summary(jax.vmap(compare)(jnp.arange(num)))


def compare_with_dreams(
    programs: Programs,
    dreamer: DreamParticle,
    statistic: Callable[[Comparison], Any],
    summary: Callable[[Any], T],
    num_dreams: int,
    num_samples: int,
    execution: ExecutionOptions,
    *,
    branching: bool | None = None,
) -> T:
    """Dream, show every dream to the guide, draw from it, and summarise what the draws of each dream are like.

    Args:
      programs: seeded by keys of their own, as `trained_programs_of` gives them.
      dreamer: how dreams come about and are shown, ``SleepOptions(...).estimator.particle``.
      statistic: of one draw and its dream, a tree of arrays; of scalars that are floats, if Python branches on what is
        drawn. A module's function or another value that has a hash: equal ones share what is compiled.
      summary: of the statistics of all draws of one dream, leaves ``(num_samples, ...)``, a tree of arrays; likewise.
      num_dreams: how many dreams. With `data_axes`, dream s has the arguments of datum s modulo their number.
      num_samples: draws of the guide for each dream.
      execution: how programs run; `chunk_size` counts dreams, each with all of its draws.
      branching: whether `branches` has said so; None to ask it.

    Returns:
      Summaries side by side, leaves ``(num_dreams, ...)``.

    Raises:
      ValueError: if programs do not match, dreams cannot be drawn or shown, or real data come into them.
    """
    check_num_draws(num_dreams, num_samples)
    data, execution = execution.data, execution.of_all_data()
    particle = DreamtParticle(dreamer, num_samples, statistic, data)
    if branching is None:
        branching = branches(programs, dreamer, execution, data)
    if not branching:
        return run(_AllDraws(particle, summary), programs, num_dreams, execution)
    of_each = run(particle, programs, num_dreams * num_samples, execution.in_groups(num_samples))
    of_each = jax.tree.map(lambda leaf: leaf.reshape(num_dreams, num_samples, *leaf.shape[1:]), of_each)
    return jax.jit(jax.vmap(summary))(of_each)


def log_weights(comparison: Comparison) -> jax.Array:
    """The log-weight of a draw on the data of its dream, log p(z, x*) - log q(z | x*), shape ``units``: a statistic."""
    return comparison.scored.log_weights


def branches(programs: Programs, dreamer: DreamParticle, execution: ExecutionOptions, data: Data | None = None) -> bool:
    """Whether Python may branch on what is drawn, once it is clear that no real data come into dreams or guide.

    Args:
      programs: as for `compare_with_dreams`.
      dreamer: likewise.
      execution: likewise.
      data: axes of data, if `execution` has none.
    """
    data, executor = data or execution.data, execution.executor()
    of_one = programs if data.count(programs) is None else data.take(programs, 0)
    with executor.watch():
        check_no_real_data(dreamer, of_one, Index(0, None, executor.ragged), by_values=False)
    return executor.ragged


def guide_reads(
    programs: Programs, dreamer: DreamParticle, num_dreams: int, execution: ExecutionOptions, *, branching: bool
) -> bool:
    """Whether the guide's density of a dream depends on the dreamt data; a guide that was fitted to data may not.

    Args:
      programs: as for `compare_with_dreams`.
      dreamer: likewise.
      num_dreams: how many there are.
      execution: likewise.
      branching: whether `branches` has said so.
    """
    particle, executor = DreamtParticle(dreamer, 1, log_weights, execution.data), execution.executor()

    def reads(number: int) -> bool:
        of_one, index = particle.of_datum(programs, number), Index(number, None, branching)
        with executor.watch():
            model_run, dream = dreamer.dream(of_one, index)
            return reads_data(dreamer, of_one, index, model_run, dream)

    return any(map(reads, range(min(num_dreams, _NUM_TRIED) if branching else 1)))


def shapes_of_dreams(
    programs: Programs, dreamer: DreamParticle, execution: ExecutionOptions, num_dreams: int
) -> dict[str, tuple[int, ...] | None]:
    """The latent sites of the first dreams, run un-jitted, with their shapes; None where these differ."""
    particle, executor = DreamtParticle(dreamer, 1, log_weights, execution.data), execution.executor()
    shapes: dict[str, tuple[int, ...] | None] = {}
    for number in range(num_dreams):
        with executor.watch():
            _, dream = dreamer.dream(particle.of_datum(programs, number), Index(number, None, True))
        for name, value in dream.draws.latents.items():
            shapes[name] = value.shape if shapes.get(name, value.shape) == value.shape else None
    return shapes


def _scored(model_run: Trace, guide_run: Trace, latents: dict[str, jax.Array], index: Index) -> Scored:
    units = Units.of(model_run, guide_run)
    scored = Scored(
        log_p=units.log_density(model_run, latents, dists_of(guide_run)),
        log_q=units.log_density(guide_run, latents, own_dists),
        units=units,
        sites=frozenset(latent_sites(guide_run)),
    )
    return scored.joint() if index.alone else scored
