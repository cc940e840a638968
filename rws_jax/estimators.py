"""The losses as functions of scored particles and dreams, and how these come about."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax import weights
from rws_jax.defensive import Defence
from rws_jax.options import SleepOptions, WakeOptions, check_num_particles
from rws_jax.particles import Dreams, Particles, draw_particles, dream, score_dreams, score_particles
from rws_jax.programs import Call


def wake(model: Call, guide: Call, defensive_guide: Call | None, options: WakeOptions) -> Particles:
    """One set of particles, scored: all that either wake loss needs."""
    check_num_particles(options.num_particles, "num_particles", minimum=2)
    indices = options.indices
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


def sleep(model: Call, guide: Call, options: SleepOptions) -> Dreams:
    """One set of dreams, scored by the guide."""
    dreams = dream(model, options.indices, options.observed_sites)
    return score_dreams(guide, dreams, options.indices, options.simulated_data_to_args)


def theta_loss(particles: Particles) -> jax.Array:
    """Wake-theta of scored particles."""
    log_w = particles.log_weights
    live = weights.alive(log_w)
    total = jnp.sum(jnp.where(live, weights.bound(log_w), 0.0))
    return -particles.scale * jnp.where(jnp.any(live), total, -jnp.inf)


def phi_loss(particles: Particles, control_variate: bool = True) -> jax.Array:
    """Wake-phi of scored particles: the value is the same whatever its gradient is estimated by."""
    log_w = lax.stop_gradient(particles.log_weights)  # weights are constants: theta gets nothing, phi only log q
    w = weights.normalise(log_w)
    loss = -jnp.sum(w * _masked(w > 0.0, particles.log_q))
    if particles.path is not None:
        # The score is in the draw itself: its expectation is that of w (1 - w) d log w along the path of the draw.
        slope = w * (1.0 - w)
        loss = lax.stop_gradient(loss) - _gradient_only(jnp.sum(slope * _masked(slope > 0.0, particles.path)))
    elif control_variate:
        log_r = particles.log_q if particles.log_r is None else particles.log_r
        baseline = weights.score_baseline(log_w, lax.stop_gradient(weights.log_weights(particles.log_q, log_r)))
        loss = loss + _gradient_only(jnp.sum(baseline * _masked(baseline > 0.0, particles.log_q)))
    return particles.scale * loss


def dream_loss(dreams: Dreams) -> jax.Array:
    """Sleep-phi of scored dreams."""
    return -dreams.scale * jnp.sum(jnp.mean(dreams.log_q, axis=0))


def _masked(counts: jax.Array, x: jax.Array) -> jax.Array:
    """What has no weight may be infinite, and 0 * inf is NaN."""
    return jnp.where(counts, x, 0.0)


def _gradient_only(x: jax.Array) -> jax.Array:
    """Zero, with the gradient of `x`."""
    return x - lax.stop_gradient(x)  # takes away the value and leaves the gradient
