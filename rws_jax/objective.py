"""What one step minimises: the losses that its options ask for, from one set of particles and one of dreams."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from numpyro.handlers import seed

from rws_jax.data import first_datum
from rws_jax.defensive import Defence
from rws_jax.estimators import Wake, sleep, wake
from rws_jax.handlers import Params, Program
from rws_jax.paths import Walk
from rws_jax.phases import Phases
from rws_jax.pilot import run_pilot
from rws_jax.programs import Call
from rws_jax.sites import Trace


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of bare programs, given keys."""

    model: Program
    guide: Program
    phases: Phases

    def __call__(
        self,
        params: tuple[Params, Params],
        share: jax.Array,
        rng_key: jax.Array,
        args: tuple,
        kwargs: dict,
        *,
        trains_theta: bool,
    ) -> tuple[jax.Array, tuple]:
        """The sum of the two programs' losses, whose gradients do not overlap, and what the info tells of it."""
        theta, phi = params
        phases, layout = self.phases, self.phases.wake.layout
        if layout.runs_by_paths:
            layout.branching.begin()
        rng_keys = [*jax.random.split(rng_key, 4 if phases.defensive_guide is None else 5), None]
        calls = partial(self.calls, theta, phi, args=args, kwargs=kwargs)
        total, alive, told = jnp.zeros(()), jnp.array(True), {}
        if phases.trains_on_wake or (theta and trains_theta):
            learned = wake(*calls(rng_keys[0], rng_keys[1], rng_keys[4]), phases.wake)
            total, alive, told = _tell(learned, phases.trains_on_wake)
        if phases.sleep:
            model, guide, _ = calls(rng_keys[2], rng_keys[3], None)
            told["sleep_phi_loss"] = sleep(model, guide, phases.sleep)
        if layout.runs_by_paths:
            told |= layout.branching.counts()
        told["phi_loss"] = _mix(share, told.get("wake_phi_loss"), told.get("sleep_phi_loss"))
        return total + told["phi_loss"], (total + told["phi_loss"], alive, told)

    def calls(
        self,
        theta: Params | None,
        phi: Params | None,
        model_key: jax.Array,
        guide_key: jax.Array,
        defensive_key: jax.Array | None,
        *,
        args: tuple,
        kwargs: dict,
        datum: int | None = None,
    ) -> tuple[Call, Call, Call | None]:
        """Model, guide and defensive guide, seeded."""
        if self.phases.shared_params and theta is not None and phi is not None:
            phi = theta | phi  # what is shared is kept with the model's, and both losses train it there
        defensive_guide = None
        if self.phases.defensive_guide is not None and defensive_key is not None:
            defensive_guide = Call(
                seed(self.phases.defensive_guide, defensive_key), "defensive guide", None, args, kwargs, datum
            )
        model = Call(seed(self.model, model_key), "model", theta, args, kwargs, datum)
        return model, Call(seed(self.guide, guide_key), "guide", phi, args, kwargs, datum), defensive_guide

    def pilot(
        self,
        theta: Params | None,
        phi: Params | None,
        rng_key: jax.Array,
        args: tuple,
        kwargs: dict,
        index: int = 0,
        walk: Walk | None = None,
    ) -> tuple[Trace, Trace]:
        """One particle of each phase, to check that the programs fit together; see `run_pilot`."""
        rng_keys, wake = jax.random.split(rng_key, 3), self.phases.wake
        args, datum = first_datum(args, wake.layout.data_axes)
        calls = self.calls(theta, phi, *rng_keys, args=args, kwargs=kwargs, datum=datum)
        model, guide = calls[0]._replace(walk=walk), calls[1]._replace(walk=walk)
        defensive_guide = None if calls[2] is None else calls[2]._replace(walk=walk)
        defence = Defence(wake.defensive, model, defensive_guide) if wake.defensive else None
        return run_pilot(model, guide, defence, self.phases, index)


@partial(jax.jit, static_argnums=1)  # which saves time where the rest is not
def _tell(wake: Wake, trains_phi: bool) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Wake's part of the total, whether any particle is alive, and what the info tells."""
    ess, num_alive = wake.totals.effective_sample_size, wake.totals.num_alive
    told = {"wake_theta_loss": wake.theta_loss} | ({"wake_phi_loss": wake.phi_loss} if trains_phi else {})
    told |= {"ess_mean": jnp.mean(ess), "ess_min": jnp.min(ess), "num_dead_units": jnp.sum(num_alive == 0)}
    told["num_dead_particles"] = jnp.sum(wake.totals.num_particles - num_alive)
    alive = jnp.any(num_alive > 0)
    return jnp.where(alive, wake.theta_loss, 0.0), alive, told  # else infinite, which is for the info to tell


@jax.jit
def _mix(share: jax.Array, wake: jax.Array | None, sleep: jax.Array | None) -> jax.Array:
    """``share * wake + (1 - share) * sleep``; a term of share zero plays no part, were it infinite."""
    terms = [(share, wake), (1.0 - share, sleep)]
    parts = [jnp.where(s == 0.0, 0.0, s * loss) for s, loss in terms if loss is not None]
    return jnp.sum(jnp.stack(parts))
