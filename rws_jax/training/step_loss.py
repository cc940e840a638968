"""What one step minimises: the losses that its options ask for, from one set of particles and one of dreams."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rws_jax.core.layers import Params, ProgramFn
from rws_jax.estimators.wake import WakeLosses
from rws_jax.execution.executor import Executor
from rws_jax.options import StepOptions
from rws_jax.programs.program import Arguments, Program, Programs

Metrics = dict[str, jax.Array]  # fields of `RWSInfo`


class LossAux(NamedTuple):
    """What a step needs beside the gradient."""

    total: jax.Array  # the loss itself
    alive: jax.Array  # whether any particle of wake has a weight, or wake has not run
    metrics: Metrics


@dataclass(frozen=True)
class StepLoss:
    """The sum of both programs' losses, whose gradients do not overlap."""

    model: ProgramFn
    guide: ProgramFn
    options: StepOptions
    executor: Executor

    def __call__(
        self,
        params: tuple[Params, Params],
        insomnia: jax.Array,
        rng_key: jax.Array,
        arguments: Arguments,
        *,
        trains_theta: bool,
    ) -> tuple[jax.Array, LossAux]:
        """The loss, to be differentiated with respect to `params`, and what else the step needs."""
        options, executor = self.options, self.executor
        executor.begin()
        has_defensive_guide = options.wake.defensive_guide is not None
        rng_keys = [*jax.random.split(rng_key, 5 if has_defensive_guide else 4), None]
        total, alive, metrics = jnp.zeros(()), jnp.array(True), {}
        if options.trains_phi_on_wake or (jax.tree.leaves(params[0]) and trains_theta):
            awake = self.programs(params, (rng_keys[0], rng_keys[1], rng_keys[4]), arguments)
            losses = options.wake.estimator(executor, awake)
            total, alive, metrics = _wake_metrics(losses, options.trains_phi_on_wake)
        if options.sleep:
            asleep = self.programs(params, (rng_keys[2], rng_keys[3], None), arguments)
            metrics["sleep_phi_loss"] = options.sleep.estimator(executor, asleep)
        phi_loss = _mixed(insomnia, metrics.get("wake_phi_loss"), metrics.get("sleep_phi_loss"))
        metrics |= executor.metrics() | {"phi_loss": phi_loss}
        return total + phi_loss, LossAux(total + phi_loss, alive, metrics)

    def programs(
        self,
        params: tuple[Params | None, Params | None],
        rng_keys: tuple[jax.Array, jax.Array, jax.Array | None],
        arguments: Arguments,
    ) -> Programs:
        """Model, guide and, if there is a third key, the defensive guide."""
        theta, phi = params
        if self.options.shared_params and theta is not None and phi is not None:
            phi = theta | phi  # what is shared is kept with the model's, and both losses train it there
        defensive_guide = self.options.wake.defensive_guide
        if defensive_guide is not None and rng_keys[2] is not None:
            defensive_guide = Program(defensive_guide, "defensive guide", rng_keys[2], None)
        return Programs(
            Program(self.model, "model", rng_keys[0], theta),
            Program(self.guide, "guide", rng_keys[1], phi),
            defensive_guide if isinstance(defensive_guide, Program) else None,
            arguments,
        )


@partial(jax.jit, static_argnums=1)  # saves time where particles run un-jitted
def _wake_metrics(losses: WakeLosses, trains_phi: bool) -> tuple[jax.Array, jax.Array, Metrics]:
    """Wake-theta as a term of the total, whether any particle is alive, and metrics."""
    ess, num_alive, num_dead = losses.weights
    metrics = {"wake_theta_loss": losses.theta_loss} | ({"wake_phi_loss": losses.phi_loss} if trains_phi else {})
    metrics |= {"ess_mean": jnp.mean(ess), "ess_min": jnp.min(ess), "num_dead_units": jnp.sum(num_alive == 0)}
    metrics["num_dead_particles"] = jnp.sum(num_dead)
    alive = jnp.any(num_alive > 0)
    return jnp.where(alive, losses.theta_loss, 0.0), alive, metrics  # an infinite loss is for the info to show


@jax.jit
def _mixed(insomnia: jax.Array, wake: jax.Array | None, sleep: jax.Array | None) -> jax.Array:
    """``insomnia * wake + (1 - insomnia) * sleep``; a term of share zero plays no part, were it infinite."""
    terms = [(insomnia, wake), (1.0 - insomnia, sleep)]
    parts = [jnp.where(share == 0.0, 0.0, share * loss) for share, loss in terms if loss is not None]
    return jnp.sum(jnp.stack(parts))
