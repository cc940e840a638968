"""Sleep: dreams of the model, latents and data together, which the guide learns to explain."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.checks import matching, sites
from rws_jax.core.sites import Trace, latent_sites
from rws_jax.estimators.scored import ScoredDreams
from rws_jax.execution.executor import Executor
from rws_jax.programs.density import Units
from rws_jax.programs.leaks import check_no_real_data
from rws_jax.programs.observations import SimulatedDataToArgs, show_data
from rws_jax.programs.program import Arguments, Index, Programs
from rws_jax.programs.run import Draws, replay, simulate


class Dream(NamedTuple):
    """What the model made up: latents, with their minibatch, and data by observed site."""

    draws: Draws
    data: dict[str, jax.Array]


@dataclass(frozen=True)
class DreamParticle:
    """What one dream computes: simulate the model, show its data to the guide, and score its latents by the guide."""

    data_sites: tuple[str, ...] = ()  # observed ones of a model that runs without data
    rewrite: SimulatedDataToArgs | None = None  # option `simulated_data_to_args`

    def __call__(self, programs: Programs, index: Index) -> ScoredDreams:
        """Dream and score."""
        model_run, dream = self.dream(programs, index)
        return self.score(programs, index, dream, model_run)

    def dream(self, programs: Programs, index: Index) -> tuple[Trace, Dream]:
        """Simulate latents and data."""
        model = programs.model.stopped()  # dreams are training data of the guide: theta learns nothing from them
        model_run, data = simulate(model, programs.arguments, index, self.data_sites)
        dream = Dream(Draws.of(model_run), data)
        # The gradient of what the model closes over, which is no parameter of its own, is removed here.
        return model_run, lax.stop_gradient(dream)

    def run(
        self, programs: Programs, index: Index, dream: Dream, model_run: Trace | None = None
    ) -> tuple[Trace, Arguments]:
        """Run the guide on dreamt data, at the dreamt latents, and check that it fits to the run that dreamt them."""
        guide, (args, kwargs) = programs.guide, programs.arguments.plain
        shown = show_data(
            guide.fn,
            dream.data,
            args,
            kwargs,
            self.rewrite,
            model_run=model_run,
            subsampled=bool(dream.draws.plates),
            alone=index.alone,
        )
        guide_run = replay(guide, shown, index, dream.draws)
        sites.check_guide(guide_run)
        if model_run is None:
            matching.check_none_missing(dream.draws.latents, guide_run)
        else:
            matching.check_match(model_run, guide_run)
            Units.of(model_run, guide_run)
        return guide_run, shown

    def score(self, programs: Programs, index: Index, dream: Dream, model_run: Trace | None = None) -> ScoredDreams:
        """Log q(z | x) of a dream."""
        guide_run, _ = self.run(programs, index, dream, model_run)
        units = Units.of(guide_run)
        log_q = units.log_density(guide_run, dream.draws.latents, lambda site: None)
        return ScoredDreams(log_q, units, frozenset(latent_sites(guide_run)))


@dataclass(frozen=True)
class Sleep:
    """Sleep-phi, by dreams of the model."""

    num_dreams: int
    particle: DreamParticle

    def __call__(self, executor: Executor, programs: Programs) -> jax.Array:
        """Run one set of dreams; the loss is a scalar in nats."""
        return executor.summed(self.particle, programs, self.num_dreams, _summarise)[0]

    def checked(self, executor: Executor, programs: Programs) -> jax.Array:
        """The same, once it is clear that no real data come into dreams or guide: `init` has checked it for a step.

        One dream is traced for it. Programs that Python branches in are run instead, which is left to `init`.
        """
        datum = None if executor.data.count(programs) is None else 0
        with executor.watch():
            index = Index(0, datum, executor.ragged)
            check_no_real_data(self.particle, executor.data.take(programs, datum), index, by_values=False)
        return self(executor, programs)


def _summarise(dreams: ScoredDreams) -> tuple[jax.Array, None]:
    return dream_loss(dreams), None  # of a single dream nothing is reported


def dream_loss(dreams: ScoredDreams) -> jax.Array:
    """Sleep-phi of scored dreams: minus the mean of log q over dreams, summed over units."""
    total = jnp.sum(dreams.log_q)
    # One, but known only once the sum is. If all gradients come from one pass, XLA on CPU draws the latents anew for
    # each of them: what it compiles, and computes, is then quadratic in the number of sites that depend on one another.
    one = jnp.where(jnp.isnan(lax.stop_gradient(total)), jnp.nan, 1.0)  # its gradient would be zero
    return -dreams.scale * total * one / dreams.log_q.shape[0]
