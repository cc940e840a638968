"""What one step minimises: the losses that its options ask for, from one set of particles and one of dreams."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.checks.mutable_state import fail_branching
from rws_jax.core.keys import split
from rws_jax.core.layers import MutableState, Params, ProgramFn
from rws_jax.core.trees import strong
from rws_jax.estimators.wake import WakeLosses
from rws_jax.execution.executor import Executor
from rws_jax.options import StepOptions
from rws_jax.programs.program import Arguments, Program, Programs

Metrics = dict[str, jax.Array]  # fields of `RWSInfo`


class LossAux(NamedTuple):
    """What a step needs beside the gradient."""

    total: jax.Array  # the loss itself
    of_theta: jax.Array | None  # that part of it which theta minimises; None if it has not been computed
    alive: jax.Array  # whether any particle of wake has a weight, or wake has not run
    metrics: Metrics
    mutable_state: MutableState | None  # after wake; None if programs have none


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
        mutable_state: MutableState | None,
        *,
        trains_theta: bool,
    ) -> tuple[jax.Array, LossAux]:
        """The loss, to be differentiated with respect to `params`, and what else the step needs.

        Mutable state goes on by a run on real data. Dreams see it, and leave it as it is.
        """
        options, executor = self.options, self.executor
        executor.begin()
        has_u = options.wake.u is not None
        rng_keys = [*split(rng_key, 5 if has_u else 4), None]
        total, alive, metrics, new_state = jnp.zeros(()), jnp.array(True), {}, mutable_state
        if options.trains_phi_on_wake or (jax.tree.leaves(params[0]) and trains_theta):
            awake = self.programs(params, (rng_keys[0], rng_keys[1], rng_keys[4]), arguments, mutable_state or {})
            losses = options.wake.estimator(executor, awake)
            total, alive, metrics = _wake_metrics(losses, options.trains_phi_on_wake)
            new_state = self.next_mutable_state(awake)
        if options.sleep:
            asleep = self.programs(params, (rng_keys[2], rng_keys[3], None), arguments, mutable_state or {})
            metrics["sleep_phi_loss"] = options.sleep.estimator(executor, asleep)
        phi_loss = _mixed(insomnia, metrics.get("wake_phi_loss"), metrics.get("sleep_phi_loss"))
        metrics |= executor.metrics() | {"phi_loss": phi_loss}
        of_theta = total + phi_loss if options.shared_params else metrics.get("wake_theta_loss")
        return total + phi_loss, LossAux(total + phi_loss, of_theta, alive, metrics, new_state)

    def next_mutable_state(
        self, programs: Programs, number: jax.Array | int = 0, datum: jax.Array | int = 0
    ) -> MutableState | None:
        """The mutable state after a run of one particle, by default the first: it is the same for all.

        Run apart from the others, it costs nothing where XLA compiles both: what it has to do for the state alone, the
        programs do as well, once for all particles.
        """
        old = programs.model.mutable_state
        if not old:
            return None
        if self.executor.ragged and not self.options.execution.one_by_one:
            fail_branching(old)
        new = self.executor.one(self.options.wake.particle.mutable_state, programs, number, datum)
        return lax.stop_gradient(strong(old | new))  # state is not trained

    def programs(
        self,
        params: tuple[Params | None, Params | None],
        rng_keys: tuple[jax.Array, jax.Array, jax.Array | None],
        arguments: Arguments,
        mutable_state: MutableState | None,
    ) -> Programs:
        """Model, guide and, if there is a third key, the defensive guide; state of which None are initial values."""
        theta, phi = params
        if self.options.shared_params and theta is not None and phi is not None:
            phi = theta | phi  # what is shared is kept with the model's, and both losses train it there
        u, rng_key = self.options.wake.u, rng_keys[2]
        proposal = None if u is None or rng_key is None else Program(u, "defensive guide", rng_key, None)
        return Programs(
            Program(self.model, "model", rng_keys[0], theta, mutable_state=mutable_state),
            Program(self.guide, "guide", rng_keys[1], phi, mutable_state=mutable_state),
            proposal,
            arguments,
        )


@partial(jax.jit, static_argnums=1)  # saves time where particles run un-jitted
def _wake_metrics(losses: WakeLosses, trains_phi: bool) -> tuple[jax.Array, jax.Array, Metrics]:
    """Wake-theta as a term of the total, whether any particle is alive, and metrics."""
    ess, num_alive, num_dead = losses.weights
    metrics = {"wake_theta_loss": losses.theta_loss} | ({"wake_phi_loss": losses.phi_loss} if trains_phi else {})
    num_dead_units = jnp.sum(num_alive == 0)
    metrics |= {"ess_mean": jnp.mean(ess), "ess_min": jnp.min(ess), "num_dead_units": num_dead_units}
    metrics["num_dead_particles"] = jnp.sum(num_dead)
    alive = num_dead_units < num_alive.size
    return jnp.where(alive, losses.theta_loss, 0.0), alive, metrics  # an infinite loss is for the info to show


@jax.jit
def _mixed(insomnia: jax.Array, wake: jax.Array | None, sleep: jax.Array | None) -> jax.Array:
    """``insomnia * wake + (1 - insomnia) * sleep``; a term of share zero plays no part, were it infinite."""
    terms = [(insomnia, wake), (1.0 - insomnia, sleep)]
    parts = [jnp.where(share == 0.0, 0.0, share * loss) for share, loss in terms if loss is not None]
    return jnp.sum(jnp.stack(parts))
