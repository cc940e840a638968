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
    simulated_data_to_args: SimulatedDataToArgs | None = None

    def __call__(self, programs: Programs, index: Index) -> ScoredDreams:
        """Dream and score."""
        _, dream = self.dream(programs, index)
        return self.score(programs, index, dream)

    def dream(self, programs: Programs, index: Index) -> tuple[Trace, Dream]:
        """Simulate latents and data."""
        model = programs.model.stopped()  # dreams are training data of the guide: theta learns nothing from them
        model_run, data = simulate(model, programs.arguments, index, self.data_sites)
        return model_run, Dream(Draws.of(model_run), data)

    def run(self, programs: Programs, index: Index, dream: Dream) -> tuple[Trace, Arguments]:
        """Run the guide on dreamt data, at the dreamt latents."""
        guide, (args, kwargs) = programs.guide, programs.arguments.plain
        subsampled = bool(dream.draws.plates)
        shown = show_data(guide.fn, dream.data, args, kwargs, self.simulated_data_to_args, subsampled=subsampled)
        guide_run = replay(guide, shown, index, dream.draws)
        sites.check_guide(guide_run)
        matching.check_none_missing(dream.draws.latents, guide_run)
        return guide_run, shown

    def score(self, programs: Programs, index: Index, dream: Dream) -> ScoredDreams:
        """Log q(z | x) of a dream."""
        guide_run, _ = self.run(programs, index, dream)
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
        return dream_loss(executor(self.particle, programs, self.num_dreams))


def dream_loss(dreams: ScoredDreams) -> jax.Array:
    """Sleep-phi of scored dreams: minus the mean of log q over dreams, summed over units."""
    total = jnp.sum(dreams.log_q)
    # One, but known only once the sum is. If all gradients come from one pass, XLA on CPU draws the latents anew for
    # each of them: what it compiles, and computes, is then quadratic in the number of sites that depend on one another.
    one = jnp.where(jnp.isnan(lax.stop_gradient(total)), jnp.nan, 1.0)  # its gradient would be zero
    return -dreams.scale * total * one / dreams.log_q.shape[0]
