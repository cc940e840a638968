"""The losses as functions of scored particles and dreams, and how these come about."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax import chunks, weights
from rws_jax.branching import branching_of, check_by_paths
from rws_jax.data import each_datum
from rws_jax.defensive import Defence
from rws_jax.one_path import Run
from rws_jax.options import SleepOptions, WakeOptions, check_num_particles
from rws_jax.particles import Dreams, Indices, Particles, draw_particles, dream, score_dreams, score_particles
from rws_jax.paths import SteersError
from rws_jax.pathwise import by_paths
from rws_jax.programs import Call
from rws_jax.weights import Totals


class Wake(NamedTuple):
    """Both losses of one set of particles, and what their weights add up to."""

    theta_loss: jax.Array
    phi_loss: jax.Array
    totals: Totals


def wake(model: Call, guide: Call, defensive_guide: Call | None, options: WakeOptions) -> Wake:
    """Draw one set of particles, and all that wake learns from it."""
    check_num_particles(options.num_particles, "num_particles", options.layout, minimum=2)
    if not options.layout.runs_by_paths:
        try:
            return _wake(model, guide, defensive_guide, options)
        except SteersError:
            pass  # which only the run of a program tells
    calls = model, guide, defensive_guide
    run = Run("wake", partial(wake_particles, options), 3 if options.defensive else 2, calls, options.layout.data_axes)
    check_by_paths(options)
    particles = by_paths(branching_of(calls, options), run, options.num_particles, options.layout.chunk_size)
    return _learned(particles, options.control_variate)


def _wake(model: Call, guide: Call, defensive_guide: Call | None, options: WakeOptions) -> Wake:
    def particles_of(params: tuple, indices: Indices) -> Particles:
        programs = model._replace(params=params[0]), guide._replace(params=params[1])
        calls = *programs, defensive_guide
        return each_datum(partial(wake_particles, options), calls, options.layout.data_axes, indices)

    params = model.params, guide.params
    layout, num_particles = options.layout, options.num_particles
    size = layout.size_of_chunks(num_particles)
    if size is None:
        return learned(particles_of(params, layout.indices(num_particles)), options.control_variate)

    # First the weights of all particles, without gradients; then gradients chunk by chunk, the weights known.
    constant = lax.stop_gradient(params)  # both losses get their gradients below
    scale = jax.eval_shape(particles_of, constant, jnp.arange(1)).scale
    totals_of = lambda indices: weights.totals(particles_of(constant, layout.spread(indices)).log_weights)
    totals = chunks.accumulated(totals_of, weights.combine, num_particles, size, weights.no_particles)
    known = lax.stop_gradient(totals)  # weights are constants to phi, and to the slope

    def learns(params: tuple, indices: jax.Array) -> tuple:
        particles = particles_of(params, layout.spread(indices))
        phi = phi_loss(particles, options.control_variate, known)
        return theta_slope(particles, known) + phi, phi  # gradients do not overlap

    phi, grads = chunks.values_and_grads(learns, params, num_particles, size)
    theta = _minus_sum(totals.bound, totals.num_alive > 0, scale)
    return Wake(chunks.with_grads(theta, grads[0], params[0]), chunks.with_grads(phi, grads[1], params[1]), known)


def learned(particles: Particles, control_variate: bool) -> Wake:
    """What all particles tell."""
    totals = weights.totals(lax.stop_gradient(particles.log_weights))  # told, but not trained on
    return Wake(theta_loss(particles), phi_loss(particles, control_variate), totals)


_learned = jax.jit(learned, static_argnums=1)  # for particles that were run un-jitted


def wake_particles(
    options: WakeOptions, model: Call, guide: Call, defensive_guide: Call | None, indices: Indices
) -> Particles:
    """Particles, scored: all that either wake loss needs."""
    defence = Defence(options.defensive, model, defensive_guide) if options.defensive else None
    pathwise = options.gradient == "dreg"
    draws = draw_particles(guide, indices, defence, reparameterised=pathwise)
    values = lax.stop_gradient(draws) if pathwise else draws  # densities are those of fixed values
    particles = score_particles(model, guide, values, indices, defence)
    if pathwise:
        # The log-weight as seen by the draw, which is all that the gradient may come through.
        along = score_particles(model.stopped(), guide.stopped(), draws, indices, reparameterised=True)
        particles = replace(particles, path=weights.log_weights(along.log_p, along.log_q))
    return particles


def sleep(model: Call, guide: Call, options: SleepOptions) -> jax.Array:
    """Sleep-phi of one set of dreams."""
    layout, num_particles = options.layout, options.num_particles

    def dreams_of(model: Call, guide: Call, indices: Indices) -> Dreams:
        dreams = dream(model, indices, options.observed_sites)
        return score_dreams(guide, dreams, indices, options.simulated_data_to_args)

    def loss(phi: Any, indices: Indices) -> jax.Array:
        programs = model, guide._replace(params=phi)
        return dream_loss(each_datum(dreams_of, programs, options.layout.data_axes, indices), options.num_particles)

    def learns(phi: Any, indices: jax.Array) -> tuple:
        value = loss(phi, layout.spread(indices))
        return value, value

    if not layout.runs_by_paths:
        try:
            size = layout.size_of_chunks(num_particles)
            if size is None:
                return loss(guide.params, layout.indices(num_particles))
            value, grads = chunks.values_and_grads(learns, guide.params, num_particles, size)
            return chunks.with_grads(value, grads, guide.params)
        except SteersError:
            pass
    calls = model, guide
    run = Run("sleep", dreams_of, 1, calls, layout.data_axes)
    check_by_paths(options)
    dreams = by_paths(branching_of(calls, options), run, num_particles, layout.chunk_size)
    return dream_loss(dreams, num_particles)


def theta_loss(particles: Particles) -> jax.Array:
    """Wake-theta of all particles."""
    log_w = particles.log_weights
    return _minus_sum(weights.bound(log_w), weights.alive(log_w), particles.scale)


def theta_slope(particles: Particles, totals: Totals) -> jax.Array:
    """Zero, with that part of wake-theta's gradient which comes through these particles."""
    w = weights.normalise(lax.stop_gradient(particles.log_weights), totals)  # d bound = sum of w d log p, w constant
    return -particles.scale * _gradient_only(jnp.sum(w * _masked(w != 0.0, particles.log_p)))


def phi_loss(particles: Particles, control_variate: bool = True, totals: Totals | None = None) -> jax.Array:
    """Wake-phi of particles, all or, given `totals`, some: the value is the same whatever estimates its gradient."""
    log_w = lax.stop_gradient(particles.log_weights)  # weights are constants: theta gets nothing, phi only log q
    totals = weights.totals(log_w) if totals is None else totals
    w = weights.normalise(log_w, totals)
    loss = -jnp.sum(w * _masked(w != 0.0, particles.log_q))
    if particles.path is not None:
        # The score is in the draw itself: its expectation is that of w (1 - w) d log w along the path of the draw.
        slope = w * (1.0 - w)
        loss = lax.stop_gradient(loss) - _gradient_only(jnp.sum(slope * _masked(slope != 0.0, particles.path)))
    elif control_variate:
        log_r = particles.log_q if particles.log_r is None else particles.log_r
        log_ratio = lax.stop_gradient(weights.log_weights(particles.log_q, log_r))
        baseline = weights.score_baseline(log_w, log_ratio, totals)
        loss = loss + _gradient_only(jnp.sum(baseline * _masked(baseline != 0.0, particles.log_q)))
    return particles.scale * loss


def dream_loss(dreams: Dreams, num_dreams: int | None = None) -> jax.Array:
    """Sleep-phi of scored dreams, all or, given how many there are in all, some."""
    return -dreams.scale * jnp.sum(dreams.log_q) / (num_dreams or dreams.log_q.shape[0])


def _minus_sum(bound: jax.Array, live: jax.Array, scale: float) -> jax.Array:
    """Over live units; infinite if there is none."""
    total = jnp.sum(jnp.where(live, bound, 0.0))
    return -scale * jnp.where(jnp.any(live), total, -jnp.inf)


def _masked(counts: jax.Array, x: jax.Array) -> jax.Array:
    """What has no weight may be infinite, and 0 * inf is NaN; a weight that is NaN counts, and is seen."""
    return jnp.where(counts, x, 0.0)


def _gradient_only(x: jax.Array) -> jax.Array:
    """Zero, with the gradient of `x`."""
    return x - lax.stop_gradient(x)  # takes away the value and leaves the gradient
