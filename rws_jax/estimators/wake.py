"""Wake: particles from the guide, weighted by the model; the losses of both programs from one set of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.checks import matching, sites
from rws_jax.core.layers import MutableState
from rws_jax.core.sites import Trace, latent_sites
from rws_jax.core.trees import stopped
from rws_jax.estimators import defensive, weights
from rws_jax.estimators.bound import of_all_units, of_live_units
from rws_jax.estimators.scored import Scored, Weighed
from rws_jax.estimators.weights import OfUnits, WeightSummary
from rws_jax.execution.executor import Executor
from rws_jax.programs.density import Units, dists_of, own_dists
from rws_jax.programs.program import Index, Program, Programs
from rws_jax.programs.run import Draws, mutable_end, replay, sample, sample_constants


class WakeRuns(NamedTuple):
    """The traces of one particle, run at given draws."""

    model: Trace
    guide: Trace
    u: Trace | None  # of the defensive proposal, if there is one


class WeighedDraw(NamedTuple):
    """A draw of all latents, with its log-weights: those of the draws of all particles make the posterior."""

    draws: Draws
    log_weights: OfUnits
    units: Units
    model_run: Trace  # at these draws
    steps: "WeighedSteps | None" = None  # of particles that are resampled


class WeighedSteps(NamedTuple):
    """What is drawn at each step of a scan, with weights by the data up to it; leaves ``(time, *value)``."""

    latents: dict[str, jax.Array]
    log_weights: jax.Array


class Weighing(Protocol):
    """What one particle computes where its draws are weighed."""

    def __call__(self, programs: Programs, index: Index) -> Weighed:
        """Draw and score, for the losses."""
        ...

    def weighed_draw(self, programs: Programs, index: Index) -> WeighedDraw:
        """Draw and weigh, for the posterior."""
        ...


class WakeLosses(NamedTuple):
    """Both losses of one set of particles, scalars in nats, and how the weights are spread."""

    theta_loss: jax.Array
    phi_loss: jax.Array
    weights: WeightSummary


@dataclass(frozen=True)
class WakeParticle:
    """What one particle computes: draw the guide or a defensive mixture, then score the draw by all programs."""

    delta: float = 0.0  # share of defensive proposals
    reparameterised: bool = False  # whether draws are functions of the guide's parameters, as gradient="dreg" wants
    needs_density: str | None = None  # the option that needs the guide's own density, free of `handlers.scale`

    def __call__(self, programs: Programs, index: Index) -> Scored:
        """Draw and score."""
        if not self.reparameterised:
            return self.scored(*self.drawn(programs, index))
        draws = self.draw(programs, index)
        fixed = lax.stop_gradient(draws)  # densities are those of fixed values

        def log_w_of(latents: dict[str, jax.Array]) -> tuple[jax.Array, Scored]:
            scored = self.score(programs, index, fixed._replace(latents=latents))
            return weights.log_weights(scored.log_p, scored.log_q), scored

        # The log-weight as seen by the draw, which is all that the gradient may come through: a linear function of
        # what moves the draw, which is zero, and so are the gradients of its coefficients.
        log_w, along, scored = jax.linearize(log_w_of, fixed.latents, has_aux=True)
        move = jax.tree.map(weights.gradient_only, draws.latents)
        return replace(scored, log_w_of_draw=lax.stop_gradient(log_w) + along(move))

    def draw(self, programs: Programs, index: Index) -> Draws:
        """Draw latents: constants, unless particles are reparameterised."""
        if self.reparameterised:
            guide_run = sample(programs.guide, programs.arguments, index)
            sites.check_guide(guide_run)
            sites.check_unbranched(guide_run)
            sites.check_reparameterised(guide_run)
            return Draws.of(guide_run)
        constant = programs.map(Program.stopped)  # so that no way of drawing is differentiated
        if self.delta:
            draws = defensive.draw(constant, index, self.delta)
        else:
            guide_run = sample(constant.guide, programs.arguments, index)
            sites.check_guide(guide_run)
            draws = Draws.of(guide_run)
        return stopped(draws)  # removes the gradient of whatever was drawn from, closed over or not

    def drawn(self, programs: Programs, index: Index) -> tuple[WakeRuns, Draws]:
        """Draw latents as constants, and run all programs at these draws: the guide once, where it draws all of them.

        XLA does not merge the loops of two runs. Where Python branches on draws, these have to be known, and come from
        a run of their own.
        """
        if self.delta or self.reparameterised or index.alone:
            draws = self.draw(programs, index)
            return self.run(programs, index, draws), draws
        guide_run = sample_constants(programs.guide, programs.arguments, index)
        sites.check_guide(guide_run)
        draws = Draws.of(guide_run)
        return self.run_beside(guide_run, programs, index, draws), draws

    def run(self, programs: Programs, index: Index, draws: Draws) -> WakeRuns:
        """Run all programs at given draws, and check that they fit together."""
        arguments = programs.arguments
        guide_run = replay(programs.guide, arguments, index, draws, proposal_dists=own_dists if self.delta else None)
        return self.run_beside(guide_run, programs, index, draws)

    def run_beside(self, guide_run: Trace, programs: Programs, index: Index, draws: Draws) -> WakeRuns:
        """The same where the guide has been run."""
        arguments = programs.arguments
        model_run = replay(programs.model, arguments, index, draws, proposal_dists=dists_of(guide_run))
        matching.check_match(model_run, guide_run, same_supports=self.reparameterised)
        u_run = defensive.run_u(programs, index, draws, guide_run, model_run) if self.delta else None
        return WakeRuns(model_run, guide_run, u_run)

    def weighed_draw(self, programs: Programs, index: Index) -> WeighedDraw:
        """Draw and weigh; a particle that runs alone was proposed as a whole, and is one unit."""
        runs, draws = self.drawn(programs, index)
        scored = self.scored(runs, draws)
        scored = scored.joint() if index.alone else scored
        return WeighedDraw(draws, scored.log_weights, scored.units, runs.model)

    def mutable_state(self, programs: Programs, index: Index) -> MutableState:
        """What the mutable sites of both programs hold after the run of one particle."""
        stopped = programs.map(Program.stopped)  # state is not trained
        runs, _ = self.drawn(stopped, index)
        return mutable_end(runs.model) | mutable_end(runs.guide)

    def units_of(self, runs: WakeRuns) -> Units:
        """The units of a particle; where the density itself is needed, the guide must not be scaled."""
        units = Units.of(*(run for run in runs if run is not None))
        if self.reparameterised:
            sites.check_unbranched(runs.model)
        if self.needs_density is not None:
            sites.check_unscaled(runs.guide, units.scale, self.needs_density)
        return units

    def score(self, programs: Programs, index: Index, draws: Draws) -> Scored:
        """Log p(z, x), log q(z | x) and, with defensive proposals, log u(z) of given draws."""
        return self.scored(self.run(programs, index, draws), draws)

    def scored(self, runs: WakeRuns, draws: Draws) -> Scored:
        """The same of programs that have been run at these draws."""
        units, dists = self.units_of(runs), dists_of(runs.guide)
        log_u = None if runs.u is None else units.log_proposal(runs.u, draws.latents, dists)
        return Scored(
            log_p=units.log_density(runs.model, draws.latents, dists),
            log_q=units.log_density(runs.guide, draws.latents, own_dists),
            units=units,
            sites=frozenset(latent_sites(runs.guide)),
            log_u=log_u,
            delta=self.delta,
        )


@dataclass(frozen=True)
class Wake:
    """Both wake losses: of the model by the bound, of the guide by one of several estimators."""

    num: int  # of particles
    particle: Weighing
    phi_loss: Callable[[Any], jax.Array]

    def __call__(self, executor: Executor, programs: Programs) -> WakeLosses:
        """Run one set of particles, and compute all that wake learns from it."""
        sums, summary = executor.summed(self.particle, programs, self.num, _Summarise(self.phi_loss))
        has_live = jnp.sum(summary.num_alive == 0) < summary.num_alive.size  # by a number that the info has too
        return WakeLosses(of_all_units(sums[0], has_live), sums[1], summary)


@dataclass(frozen=True)
class _Summarise:
    """What wake keeps of particles: both losses, of which wake-theta is that of live units, and their weights."""

    phi_loss: Callable[[Any], jax.Array]

    def __call__(self, scored: Weighed) -> tuple[tuple[jax.Array, jax.Array], WeightSummary]:
        return (of_live_units(scored), self.phi_loss(scored)), scored.summary
