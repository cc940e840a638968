"""What goes in and out of a training step: arrays only, so that all of it can be jitted, scanned, vmapped and saved."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rws_jax.core.layers import MutableState, Params
from rws_jax.core.summaries import summary


class RWSState(NamedTuple):
    """All that the next step needs, arrays only; it can be saved, restored and passed on in a new process.

    `theta` and `phi` hold unconstrained values keyed by `numpyro.param` site of the model and of the guide; they are
    read as dicts, and refused where parameters are asked for, which are what `get_params` gives. `mutable_state` holds
    what the mutable sites of both programs do (running statistics of BatchNorm, say), keyed by site, and is None where
    there are none.
    """

    theta: Params
    phi: Params
    theta_opt_state: optax.OptState
    phi_opt_state: optax.OptState
    rng_key: jax.Array
    step: jax.Array
    mutable_state: MutableState | None = None

    def __repr__(self) -> str:
        return summary(self)

    @property
    def plain(self) -> "RWSState":
        """The same values in plain dicts, as optimizers and programs take them."""
        return self._replace(theta=dict(self.theta), phi=dict(self.phi))

    def in_containers_of(self, other: "RWSState") -> "RWSState":
        """The same values in dicts of another state's kind; one that was put together by hand has plain ones."""
        kinds = type(other.theta), type(other.phi)
        return self._replace(theta=kinds[0](self.theta), phi=kinds[1](self.phi))


class RWSInfo(NamedTuple):
    """What one step saw: device arrays, shape ``()``. What was not computed is None.

    Losses are in nats and summed over the (full) data; minus `wake_theta_loss` is the bound on the log evidence.
    Effective sample sizes are in particles, over units. `num_dead_particles` counts, over all units, particles whose
    weight is zero: outside of the support, or where a density is too small for a float. `num_dead_units` counts the
    units that have no others. After a step with ``finite == False`` parameters, optimizer states and mutable state are
    what they were before; so are parameters and optimizer state of the model after a step in which every unit was dead.

    Where programs branch in Python, `num_paths` counts the different paths of this step's particles and dreams.
    By paths, `num_compiled` counts the functions of paths that are kept compiled, and `num_unjitted` the runs that were
    not; both are None where all paths are compiled as a whole.

    An info of `evaluate` has as `step` how many steps its state had taken. Infos of a `fit` that evaluates have as
    `held_out` those of its evaluations, of shapes ``(evaluations,)``.
    """

    wake_theta_loss: jax.Array | None
    wake_phi_loss: jax.Array | None
    sleep_phi_loss: jax.Array | None
    phi_loss: jax.Array
    insomnia: jax.Array
    ess_mean: jax.Array | None
    ess_min: jax.Array | None
    num_dead_units: jax.Array | None
    num_dead_particles: jax.Array | None
    theta_grad_norm: jax.Array | None
    phi_grad_norm: jax.Array | None
    finite: jax.Array
    num_paths: jax.Array | None
    num_compiled: jax.Array | None
    num_unjitted: jax.Array | None
    step: jax.Array | None = None
    held_out: "RWSInfo | None" = None

    def __repr__(self) -> str:
        return summary(self)

    @classmethod
    def of_no_steps(cls) -> "RWSInfo":
        """Infos of no steps at all, stacked."""
        known = {"phi_loss": jnp.zeros(0), "insomnia": jnp.zeros(0), "finite": jnp.zeros(0, bool)}
        infos: dict[str, Any] = dict.fromkeys(cls._fields) | known
        return cls(**infos)


class NonFiniteError(FloatingPointError):
    """Training with `fit` cannot go on; nothing of it is lost.

    Attributes:
      state: the last state.
      infos: those of all steps taken, stacked.
    """

    def __init__(self, message: str, *, state: RWSState, infos: RWSInfo) -> None:
        super().__init__(message)
        self.state, self.infos = state, infos

    def __reduce__(self) -> tuple:
        return _nonfinite_error, (str(self), self.state, self.infos)


def _nonfinite_error(message: str, state: RWSState, infos: RWSInfo) -> NonFiniteError:
    return NonFiniteError(message, state=state, infos=infos)  # for pickle, which passes by position


class RWS(NamedTuple):
    """What `make_step` returns; unpacks as ``init, step, get_params``.

    ``init(rng_key, *args, **kwargs) -> RWSState``, ``step(state, *args, **kwargs) -> (RWSState, RWSInfo)``,
    ``get_params(state, *args, **kwargs) -> dict`` of constrained values of model and guide, keyed by site. The
    arguments are those of the two programs. `get_params` needs them too: it runs the programs to find the constraints
    of their sites, which may depend on arguments, while a state holds numbers alone.
    """

    init: Callable[..., RWSState]
    step: Callable[..., tuple[RWSState, RWSInfo]]
    get_params: Callable[..., Params]

    @property
    def evaluate(self) -> Callable[..., RWSInfo]:
        """What a step would report of a state, without one: ``evaluate(state, *args, **kwargs) -> RWSInfo``.

        On data that are held out, minus `wake_theta_loss` is the bound on their log evidence, a sum over live units as
        in training. Nothing is updated, gradients are not computed, and their norms are None; `finite` is that of the
        losses. It is jitted as `step` is, and can be scanned, vmapped and jitted again. Mutable state is used, and not
        carried on.

        The key is made of that of the state: the same state gives the same particles, which are not those of the next
        step.
        """
        step: Any = self.step
        return step.evaluate
