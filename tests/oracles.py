"""The losses written out by hand, and what tests need to feed them and the package with the same draws."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp
from numpyro.handlers import seed

from rws_jax import estimators
from rws_jax.options import WakeOptions
from rws_jax.programs import Call


def seeded(model, guide, seed_value=0):
    model_key, guide_key = jax.random.split(jax.random.key(seed_value))
    return seed(model, model_key), seed(guide, guide_key)


def calls(model, guide, theta, phi, *args):
    """Seeded programs with their parameters and arguments."""
    model, guide = seeded(model, guide)
    return Call(model, "model", theta, args, {}), Call(guide, "guide", phi, args, {})


def wake(model, guide, *args, num_particles):
    """Scored particles of programs without parameters."""
    options = WakeOptions(num_particles)
    return estimators.wake_particles(options, *calls(model, guide, {}, {}, *args), None, jnp.arange(num_particles))


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


def mixture(log_q, log_u, delta):
    """Log density of a defensive proposal."""
    return jnp.log((1 - delta) * jnp.exp(log_q) + delta * jnp.exp(log_u))
