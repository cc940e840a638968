"""The losses written out by hand, and what tests need to feed them and the package with the same draws."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp
from numpyro.handlers import seed

from rws_jax.estimators.scored import Scored
from rws_jax.estimators.sleep import Dream, DreamParticle
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.data import Data
from rws_jax.execution.vectorized import Vectorized
from rws_jax.programs.density import Units
from rws_jax.programs.program import Arguments, Index, Program, Programs
from rws_jax.programs.run import Draws


def seeded(model, guide, seed_value=0):
    """Programs with keys; those that have one keep it."""
    keys = jax.random.split(jax.random.key(seed_value))
    has_key = lambda program: isinstance(program, seed)
    return tuple(p if has_key(p) else seed(p, key) for p, key in zip((model, guide), keys, strict=True))


def programs_of(model, guide, theta, phi, *args, defensive_guide=None):
    """Seeded programs with their parameters and arguments, as estimators take them."""
    model, guide = seeded(model, guide)
    return Programs(
        Program.of_seeded(model, "model", theta),
        Program.of_seeded(guide, "guide", phi),
        None if defensive_guide is None else Program.of_seeded(defensive_guide, "defensive guide", None),
        Arguments(args, {}),
    )


def draw(programs, particles, delta=0.0, data_axes=None):
    """What the guide, or a defensive mixture, draws as these particles: so many, or those of an array of numbers."""
    particles = jnp.arange(particles) if isinstance(particles, int) else particles
    run = lambda programs: Vectorized(Data(data_axes)).over(particles, WakeParticle(delta).draw, programs)
    return jax.jit(run)(programs)


def score(programs, latents, delta=0.0):
    """Log densities of given latents, with the particles in front."""
    one = lambda number, latents: WakeParticle(delta).score(programs, Index(number), Draws(latents, {}))
    return jax.jit(jax.vmap(one))(jnp.arange(len(jax.tree.leaves(latents)[0])), latents)


def dream(model, num, *args, params=None):
    """Latents and data that a model dreams up."""
    programs = programs_of(model, lambda *args: None, {} if params is None else params, {}, *args)
    of_one = lambda programs, index: DreamParticle().dream(programs, index)[1]
    dreams = jax.jit(lambda programs: Vectorized()(of_one, programs, num))(programs)
    return dreams.draws.latents, dreams.data


def score_dreams(programs, latents, data):
    """Log densities of given dreams by the guide."""
    one = lambda latents, data: DreamParticle().score(programs, Index(0), Dream(Draws(latents, {}), data))
    return jax.jit(jax.vmap(one))(latents, data)


def scored(log_p, log_q, log_r=None, log_w_of_draw=None, scale=1.0):
    """Given log densities; half of the particles come from what makes the proposal r."""
    log_u, delta = None, 0.0
    if log_r is not None:
        u = jnp.maximum(2.0 * jnp.exp(log_r) - jnp.exp(log_q), 0.0)  # rounding may be below zero, on a GPU
        log_u, delta = jnp.log(u), 0.5
    return Scored(log_p, log_q, Units((), scale), log_u=log_u, delta=delta, log_w_of_draw=log_w_of_draw)


def wake(model, guide, *args, num_particles, params=({}, {})):
    """Scored particles of programs, which are seeded here unless they are already."""
    run = lambda programs: Vectorized()(WakeParticle(), programs, num_particles)
    return jax.jit(run)(programs_of(model, guide, *params, *args))


# For what computes for longer than it compiles, where the tests' own flags are wrong.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def value_and_grads(loss):
    """Value and gradients with respect to theta and phi, compiled."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def theta_loss(log_p, log_q, log_r=None):
    """Minus the bound, of proposals from r; all densities have shape ``(particles, *units)``."""
    log_w = log_p - lax.stop_gradient(log_q if log_r is None else log_r)
    return -jnp.sum(logsumexp(log_w, axis=0) - jnp.log(len(log_w)))


def phi_loss(log_p, log_q, log_r=None, control_variate=False):
    """Wake-phi, of proposals from r; the control variate is seen in the gradient only."""
    log_r = log_q if log_r is None else log_r
    w = lax.stop_gradient(jax.nn.softmax(log_p - log_r, axis=0))
    loss = -jnp.sum(w * log_q)
    if not control_variate:
        return loss
    coefficients = w - lax.stop_gradient(jnp.exp(log_q - log_r)) / len(log_q)
    surrogate = -jnp.sum(coefficients * log_q)
    return lax.stop_gradient(loss - surrogate) + surrogate


def vimco_loss(log_p, log_q, log_r=None):
    """Minus the bound, with the gradient of VIMCO; the sum over the other particles is taken one by one."""
    log_r = log_q if log_r is None else log_r
    log_w, num = lax.stop_gradient(log_p - log_r), len(log_p)
    bound, score = logsumexp(log_w, axis=0) - jnp.log(num), 0.0
    for k in range(num):
        others = jnp.concatenate([log_w[:k], log_w[k + 1 :]])
        baseline = logsumexp(jnp.concatenate([others, others.mean(axis=0)[None]]), axis=0) - jnp.log(num)
        score = score + (bound - baseline - jax.nn.softmax(log_w, axis=0)[k]) * log_r[k]
    return -jnp.sum(bound) - jnp.sum(score) + lax.stop_gradient(jnp.sum(score))


def mixture(log_q, log_u, delta):
    """Log density of a defensive proposal, whose u trains nobody."""
    return jnp.log((1 - delta) * jnp.exp(log_q) + delta * jnp.exp(lax.stop_gradient(log_u)))
