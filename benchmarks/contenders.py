"""What `speed.py` compares: the training step of one workload, as a user of each library would write it.

All start from the same parameters and train with Adam. Where gradients are compared, parameters stay and the state of
the optimizer is the gradient.
"""

import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from jax import lax
from jax.scipy.special import logsumexp
from numpyro.handlers import substitute
from numpyro.infer import SVI, RenyiELBO

import rws_jax


class Setting(NamedTuple):
    """What all contenders are given."""

    workload: Any  # a module of `workloads`
    num_particles: int
    x: jax.Array
    theta: dict
    phi: dict
    train: bool = True

    def optimizer(self):
        """Adam, or one that only keeps the gradient."""
        if self.train:
            return optax.adam(self.workload.LEARNING_RATE)
        zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
        return optax.GradientTransformation(zeros, lambda grads, state, params: (zeros(grads), grads))


class Contender(NamedTuple):
    """A training step ``(state, x) -> (state, logs)``, compiled by `jax.jit` unless it is Pyro's."""

    state: Any
    step: Callable
    x: Any
    bound: Callable  # logs -> the bound on the evidence, in nats
    gradients: Callable  # state -> the gradients of model and guide, if they are kept


def by_rws_jax(setting, data_chunk_size=None):
    """This package: all data at once, or programs of one datum, on so many data at a time."""
    workload, num_particles, x, _, _, _ = setting
    chunks = {} if data_chunk_size is None else {"data_axes": 0, "data_chunk_size": data_chunk_size}
    rws = rws_jax.make_step(
        *((workload.model, workload.guide) if data_chunk_size is None else workload.of_one),
        theta_optimizer=setting.optimizer(),
        phi_optimizer=setting.optimizer(),
        num_particles=num_particles,
        **chunks,
    )
    state = rws.init(jax.random.key(0), x)._replace(theta=setting.theta, phi=setting.phi)
    return Contender(state, rws.step, x, lambda info: -info.wake_theta_loss, lambda state: state[2:4])


def by_hand(setting):
    """Plain JAX and optax: draws, densities, one gradient, two updates. No diagnostics, and nothing is checked."""
    workload, num_particles, x, theta, phi, _ = setting
    optimizer = setting.optimizer()

    def loss(theta, phi, rng_key, x):
        log_p, log_q = workload.log_densities(theta, phi, rng_key, x, num_particles)
        log_w = log_p - lax.stop_gradient(log_q)  # the bound trains theta alone
        w = lax.stop_gradient(jax.nn.softmax(log_w, axis=0))  # weights are constants to phi
        theta_loss = -jnp.sum(logsumexp(log_w, axis=0) - math.log(num_particles))
        phi_loss = -jnp.sum((w - 1.0 / num_particles) * log_q)
        return theta_loss + phi_loss, (theta_loss, phi_loss)

    @jax.jit
    def step(state, x):
        theta, phi, theta_opt_state, phi_opt_state, rng_key = state
        rng_key, step_key = jax.random.split(rng_key)
        grads, losses = jax.grad(loss, argnums=(0, 1), has_aux=True)(theta, phi, step_key, x)
        updates, theta_opt_state = optimizer.update(grads[0], theta_opt_state, theta)
        theta = optax.apply_updates(theta, updates)
        updates, phi_opt_state = optimizer.update(grads[1], phi_opt_state, phi)
        phi = optax.apply_updates(phi, updates)
        return (theta, phi, theta_opt_state, phi_opt_state, rng_key), losses

    state = theta, phi, optimizer.init(theta), optimizer.init(phi), jax.random.key(0)
    return Contender(state, step, x, lambda losses: -losses[0], lambda state: state[2:4])


def by_pyro(setting):
    """Pyro's `ReweightedWakeSleep` on the CPU, without its checks of arguments, by one thread or all: as is faster."""
    import pyro
    import torch
    from pyro import infer, optim

    workload, num_particles, x, theta, phi, train = setting
    x = torch.tensor(np.array(x))
    pyro.enable_validation(False)

    def make():
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        loss = infer.ReweightedWakeSleep(num_particles=num_particles, max_plate_nesting=1)
        optimizer = optim.Adam({"lr": workload.LEARNING_RATE if train else 0.0})
        svi = infer.SVI(*workload.in_pyro(theta, phi), optimizer, loss)
        return lambda _, x: (None, svi.step(x))

    def seconds(num_threads):
        torch.set_num_threads(num_threads)
        step, times = make(), [time.perf_counter()]
        for _ in range(10):
            step(None, x)
            times.append(time.perf_counter())
        return np.median(np.diff(times))

    torch.set_num_threads(min((1, os.cpu_count()), key=seconds))
    return Contender(None, make(), x, lambda losses: -losses[0], lambda _: None)


def by_coix(setting):
    """The loss `rws` of coix, trained as all losses of coix are."""
    import coix

    workload, num_particles, x, *params, _ = setting
    optimizer = setting.optimizer()
    programs = without_scan(workload)

    def loss(params, rng_key, x):
        particles = lambda program: numpyro.plate("particles", num_particles, dim=-2)(program)
        target, proposal = (substitute(particles(p), values) for p, values in zip(programs, params, strict=True))
        _, _, metrics = coix.traced_evaluate(coix.algo.rws(target, proposal), seed=rng_key)(x)
        return metrics["loss"], metrics

    @jax.jit
    def step(state, x):
        params, opt_state, rng_key = state
        rng_key, step_key = jax.random.split(rng_key)
        grads, metrics = jax.grad(loss, has_aux=True)(params, step_key, x)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, rng_key), metrics

    state = tuple(params), optimizer.init(tuple(params)), jax.random.key(0)
    return Contender(state, step, x, lambda metrics: metrics["log_Z"], lambda state: state[1])


def by_renyi(setting):
    """NumPyro's `SVI` on the importance-weighted bound, which is wake-theta; the guide's gradient is another."""
    workload, num_particles, x, theta, phi, _ = setting
    svi = SVI(*without_scan(workload), setting.optimizer(), RenyiELBO(alpha=0, num_particles=num_particles))
    state = svi.init(jax.random.key(0), x, init_params=theta | phi)

    def gradients(state):
        _, (_, kept) = state.optim_state
        return [{name: kept[name] for name in part} for part in (theta, phi)]

    return Contender(state, jax.jit(svi.update), x, lambda loss: -loss, gradients)


CONTENDERS = {
    "rws_jax": by_rws_jax,
    "chunks of 16": partial(by_rws_jax, data_chunk_size=16),
    "chunks of 32": partial(by_rws_jax, data_chunk_size=32),
    "by hand": by_hand,
    "Pyro": by_pyro,
    "coix": by_coix,
    "RenyiELBO(0)": by_renyi,
}


def takes_part(name, workload):
    """Data are taken in chunks where a workload has programs of one datum."""
    return hasattr(workload, "of_one") or "chunks" not in name


def without_scan(workload):
    """Model and guide for libraries that do not look into NumPyro's `scan`."""
    return getattr(workload, "without_scan", (workload.model, workload.guide))
