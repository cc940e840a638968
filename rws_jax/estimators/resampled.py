r"""Particles that are resampled in time: both programs scan, and run in lockstep.

.. math:: \log w_{t,k} = \log w_{t-1,k} + \log \frac{p_\theta(z_{t,k}, x_t \mid \cdot)}{q_\phi(z_{t,k} \mid \cdot)}

After a step whose effective sample size has fallen below a share of the particles, these are drawn again in proportion
to their weights, with all that they carry, and have equal weights from then on. The evidence stays unbiased.

The gradient of the bound is that of the paths which are left at the end,

.. math:: \sum_k \bar w_{T,k} \nabla_\theta \log p_\theta(z_{1:T,k}, x_{1:T})

by Fisher's identity that of log evidence as the number of particles grows. The gradient of the estimate's own
logarithm, ancestors constant (FIVO, Maddison et al. 2017, arXiv 1705.09279), is that of a filter: what follows a step
does not bear upon it, and it is biased for any number of particles.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.checks import lockstep as checks
from rws_jax.estimators import weights
from rws_jax.estimators.resampling import systematic_ancestors
from rws_jax.estimators.scored import Term
from rws_jax.estimators.wake import WakeParticle, WeighedDraw, WeighedSteps
from rws_jax.estimators.weights import PerParticle, WeightSummary
from rws_jax.execution.branching.errors import BranchingSiteError
from rws_jax.execution.vectorized import PARTICLES
from rws_jax.programs.lockstep import Lockstep, Runs, State, lockstep
from rws_jax.programs.program import Index, Programs
from rws_jax.programs.run import Draws

_ANCESTORS_KEY = 0xFFFFFFFE  # a number for the key of resampling that no particle has


class Recorded(NamedTuple):
    """What is kept of each step, before it resamples: leaves ``(time, *value)``."""

    log_w: jax.Array
    log_q: jax.Array  # of what the step draws
    latents: dict[str, jax.Array]
    ancestor: jax.Array  # the particle that goes on from here in the place of this one, after resampling


class Origins(NamedTuple):
    """What was drawn before the scan, and who goes on with it; leaves ``(particles, *data)``."""

    log_q: jax.Array  # of what a particle has drawn itself
    number: jax.Array  # the particle that drew what this one has at the end
    log_w: jax.Array  # after the first step


@partial(
    jax.tree_util.register_dataclass, data_fields=["log_weights", "log_w", "log_q", "origins"], meta_fields=["scale"]
)
@dataclass(frozen=True)
class ScoredSteps:
    """Log-weights of particles at the end, and at each step before it resamples; leaves ``(particles, *data, time)``.

    The last axis is that of the data: a reversed scan begins at its end.
    """

    log_weights: PerParticle  # at the end, (particles, *data); their bound estimates the log evidence
    log_w: jax.Array  # after each step, of what was resampled before it
    log_q: jax.Array  # log density of what each step draws
    origins: Origins | None  # None: nothing is drawn before the scan
    scale: float = 1.0

    @property
    def terms(self) -> list[Term]:
        r"""What the guide learns from: each step's draws, by the weights after it, :math:`\bar w_{t,k}`.

        The weights are those of the data up to then (Gu et al. 2015, arXiv 1506.03338). What is drawn before the scan
        has the weights of all data: the sum of those at the end of the particles that have come from it. A unit whose
        particles all die at a step trains the guide by the steps before it.
        """
        log_w = lax.stop_gradient(self.log_w)  # weights and baseline train neither theta nor the proposals
        w, baseline = weights.normalise(log_w), weights.score_baseline(log_w, jnp.zeros_like(log_w))
        terms = [Term(self.log_q, w, baseline)]
        if self.origins is not None:
            log_q, number, log_w = lax.stop_gradient(self.origins)._replace(log_q=self.origins.log_q)  # as above
            at_end = weights.normalise(lax.stop_gradient(self.log_weights))  # as above
            w = jnp.zeros_like(at_end).at[number, *jnp.indices(at_end.shape)[1:]].add(at_end)
            terms.append(Term(log_q, w, weights.score_baseline(log_w, jnp.zeros_like(log_w))))
        return terms

    @property
    def summary(self) -> WeightSummary:
        """How weights are spread: the mean over steps of the effective sample size, and who is dead at the end."""
        at_end = weights.summarise(lax.stop_gradient(self.log_weights))  # reported, and trains nothing
        of_steps = weights.summarise(lax.stop_gradient(self.log_w)).effective_sample_size
        return at_end._replace(effective_sample_size=jnp.where(at_end.num_alive > 0, jnp.mean(of_steps, axis=-1), 0.0))


@dataclass(frozen=True)
class ResampledParticle:
    """What one particle computes: draw and score step by step, and exchange particles on the way.

    It is one of all particles that run together, which are an axis of `jax.vmap`.
    """

    wake: WakeParticle
    below: float  # share of the particles; they are resampled when the effective sample size is below it

    def __call__(self, programs: Programs, index: Index) -> ScoredSteps:
        """Draw, score and resample."""
        steps = self.lockstep(programs, index)
        log_weights, recorded, origin = self.run(steps, programs, index)
        origins = None if origin is None else Origins(steps.before.log_q, origin, recorded.log_w[steps.first])
        return ScoredSteps(log_weights, recorded.log_w, recorded.log_q, origins)

    def weighed_draw(self, programs: Programs, index: Index) -> WeighedDraw:
        """The path of a particle that is there at the end, traced back through its ancestors, and its log-weight."""
        steps = self.lockstep(programs, index)
        log_weight, recorded, _ = self.run(steps, programs, index)
        draws = Draws(_path(steps, recorded), {})
        runs = self.wake.run(programs, index, draws)
        units, of_steps = self.wake.units_of(runs), WeighedSteps(recorded.latents, recorded.log_w)
        return WeighedDraw(draws, log_weight.reshape(units.shape), units, runs.model, of_steps)

    def lockstep(self, programs: Programs, index: Index) -> Lockstep:
        """Both programs as one sequence of steps."""
        if index.alone:
            checks.fail_alone()

        def run(index: Index, draws: Draws) -> Runs:
            runs = self.wake.run(programs, index, draws)
            self.wake.units_of(runs)  # which checks them
            return Runs(runs.model, runs.guide)

        try:
            return lockstep(partial(self.wake.draw, programs), run, index)
        except BranchingSiteError:
            checks.fail_alone()

    def run(self, steps: Lockstep, programs: Programs, index: Index) -> tuple[jax.Array, Recorded, jax.Array | None]:
        """Log-weight at the end, what was recorded of each step, and who drew what this one has from before the scan.

        The last is None if nothing is drawn there.
        """
        rng_key = jax.random.fold_in(programs.guide.key_of(index), _ANCESTORS_KEY)  # the same for all particles
        own = lax.axis_index(PARTICLES)  # in the body of the scan it could be taken for a constant, to be known at once
        last = 0 if steps.reverse else steps.length - 1

        def step(carry: tuple[State, jax.Array, Any], x_and_position: tuple) -> tuple[tuple, Recorded]:
            (state, log_w, origin), (x, position) = carry, x_and_position
            state, scored = steps.step(state, x, position)
            log_w = log_w + _log_weight(scored.log_p, scored.log_q)
            all_log_w = lax.all_gather(log_w, PARTICLES)
            num = len(all_log_w)
            ess = weights.summarise(lax.stop_gradient(all_log_w)).effective_sample_size  # decides, and trains nothing
            resamples = weights.alive(all_log_w) & (ess < self.below * num) & (position != last)
            ancestors = systematic_ancestors(jax.random.fold_in(rng_key, position), lax.stop_gradient(all_log_w))
            ancestor = jnp.where(resamples, ancestors[own].astype(own.dtype), own)
            state = state._replace(own=[_taken(leaf, ancestor) for leaf in state.own])
            origin = jax.tree.map(lambda leaf: _taken(leaf, ancestor), origin)
            # All are of equal weight from here on; the gradient is that of the path that has led to each of them.
            path = jnp.where(resamples, all_log_w[ancestor], 0.0)
            equal = lax.stop_gradient(weights.bound(all_log_w)) + weights.gradient_only(path)
            after = jnp.where(resamples, equal, log_w)
            return (state, after, origin), Recorded(log_w, scored.log_q, scored.latents, ancestor)

        log_w = _log_weight(steps.before.log_p, steps.before.log_q)
        start = steps.start, log_w, own if steps.before.latents else None
        xs = steps.xs, jnp.arange(steps.length)
        (_, log_w, origin), recorded = lax.scan(step, start, xs, steps.length, steps.reverse)
        return log_w, recorded, origin


def _path(steps: Lockstep, recorded: Recorded) -> dict[str, jax.Array]:
    """Latents of a whole sequence, those before the scan among them, that led to a particle at the end."""

    def back(number: jax.Array, step: tuple) -> tuple[jax.Array, dict[str, jax.Array]]:
        latents, ancestor = step
        number = _taken(ancestor, number)
        return number, jax.tree.map(lambda leaf: _taken(leaf, number), latents)

    own, xs = lax.axis_index(PARTICLES), (recorded.latents, recorded.ancestor)
    number, path = lax.scan(back, own, xs, reverse=not steps.reverse)
    before = jax.tree.map(lambda leaf: _taken(leaf, number), steps.before.latents)
    return before | path


def _taken(leaf: jax.Array, number: jax.Array) -> jax.Array:
    """What the particle of this number has; keys are exchanged by their data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        taken = _taken(jax.random.key_data(leaf), number)
        return jax.random.wrap_key_data(taken, impl=jax.random.key_impl(leaf))
    return lax.all_gather(leaf, PARTICLES)[number]


def _log_weight(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    return weights.log_weights(log_p, lax.stop_gradient(log_q))  # the bound does not train the guide
