"""The functions of `make_step`: how a state is made, how one step leads to the next, what its parameters are."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rws_jax.checks.arguments import check_rng_key, check_state, check_takes
from rws_jax.checks.control_flow import fail_static
from rws_jax.checks.options import check_scheduled_insomnia
from rws_jax.checks.params import check_all_found
from rws_jax.core.errors import CONCRETIZATION_ERRORS
from rws_jax.core.keys import split
from rws_jax.core.layers import MutableState, Params
from rws_jax.core.trees import copied, strong
from rws_jax.core.unconstrained import Unconstrained
from rws_jax.execution.compiles import check_compiles
from rws_jax.execution.devices import automatic, on_automatic_axes
from rws_jax.programs.program import Arguments
from rws_jax.programs.run import constrained_values
from rws_jax.training.dispatch import Dispatched, NotJittable
from rws_jax.training.exploration import pilots
from rws_jax.training.initial import initial_values
from rws_jax.training.pilot import run_pilot
from rws_jax.training.resume import StateKinds
from rws_jax.training.state import RWS, RWSInfo, RWSState
from rws_jax.training.step_loss import LossAux, StepLoss
from rws_jax.training.updates import Progress, Updates

_EVALUATION = 0x6576616C  # folded into the key; small numbers may give the keys that a step splits off
_MAX_RUNS = 1000  # of programs that take some parameters in some branches only


@dataclass(frozen=True)
class Trainer:
    """What is minimised, how it is updated, and which states belong to it. It holds no parameters and no keys."""

    loss: StepLoss
    updates: Updates
    phi_steps: int
    of_guide: Callable[..., Progress]  # the updates, each compiled if the step is not
    of_both: Callable[..., tuple[RWSState, RWSInfo]]
    kinds: StateKinds = field(default_factory=StateKinds)
    compared: set[tuple] = field(default_factory=set)  # arguments for which elements of plates have been compared
    loop: Callable = lax.scan  # how several updates of the guide are made
    num_runs: int = 1  # of programs at most, until all of their parameters are found

    def init(self, rng_key: jax.Array, /, *args: Any, **kwargs: Any) -> RWSState:
        """The first state, once it is clear that programs, options and arguments fit together."""
        arguments = Arguments.of(args, kwargs, self.loss.model)
        check_rng_key(rng_key, "the first argument of init", "call rws.init(jax.random.key(0), *args)")
        rng_key, pilot_key, _ = jax.random.split(rng_key, 3)  # the first of three goes on, as in NumPyro's SVI
        # A step takes arrays of NumPy's as JAX's, which stay the same object where programs ask for an array.
        own = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, arguments)
        with on_automatic_axes((pilot_key, own)) as placed:
            theta, phi, mutable_state = automatic(self._initial_values)(*placed)
        state = RWSState(
            theta=Unconstrained(theta),
            phi=Unconstrained(phi),
            theta_opt_state=strong(self.updates.theta_optimizer.init(theta)),
            phi_opt_state=strong(self.updates.phi_optimizer.init(phi)),
            rng_key=rng_key,
            step=jnp.zeros((), jnp.int32),
            mutable_state=mutable_state,
        )
        insomnia = self.loss.options.insomnia
        if callable(insomnia):
            check_scheduled_insomnia(insomnia(state.step))
        self.kinds.add(state.plain)
        state = copied(state)  # initial values may be one array, that of the caller, and states of optimizers hold them
        return self.loss.options.execution.replicated(state, arguments)

    # jax.jit mistakes an argument `state` of the programs for a positional-only one of the same name.
    def step(self, rws_state: RWSState, /, *args: Any, **kwargs: Any) -> tuple[RWSState, RWSInfo]:
        """The next state, and what this step has seen."""
        check_state(rws_state, RWSState)
        state, arguments = rws_state.plain, Arguments.of(args, kwargs, self.loss.model)
        self.kinds.check(state, lambda: self._like_init(state, arguments))
        rng_key, step_key, *guide_key = split(state.rng_key, 2 if self.phi_steps == 1 else 3)
        insomnia = self._insomnia(state.step)

        def gradients(
            progress: Progress, rng_key: jax.Array, *, trains_theta: bool
        ) -> tuple[tuple[Params, Params], LossAux]:
            loss, params = partial(self.loss, trains_theta=trains_theta), (state.theta, progress.guide.params)
            return jax.grad(loss, has_aux=True)(params, insomnia, rng_key, arguments, progress.mutable_state)

        def guide_step(progress: Progress, rng_key: jax.Array) -> tuple[Progress, None]:
            grads, aux = gradients(progress, rng_key, trains_theta=False)
            return self.of_guide(progress, grads[1], insomnia, aux), None

        progress = Progress.of(state)
        if self.phi_steps > 1:
            progress, _ = self.loop(guide_step, progress, jax.random.split(guide_key[0], self.phi_steps - 1))
        grads, aux = gradients(progress, step_key, trains_theta=True)
        new_state, info = self.of_both(state, rng_key, progress, grads, insomnia, aux)
        return new_state.in_containers_of(rws_state), info

    def evaluate(self, rws_state: RWSState, /, *args: Any, **kwargs: Any) -> RWSInfo:
        """What a step would report of these arguments, without one."""
        check_state(rws_state, RWSState, "the first argument of evaluate")
        state, arguments = rws_state.plain, Arguments.of(args, kwargs, self.loss.model)
        self.kinds.check(state, lambda: self._like_init(state, arguments))
        rng_key = jax.random.fold_in(jax.random.clone(state.rng_key), _EVALUATION)
        insomnia = self._insomnia(state.step)
        params, mutable_state = (state.theta, state.phi), state.mutable_state
        _, aux = self.loss(params, insomnia, rng_key, arguments, mutable_state, trains_theta=True)
        return self.updates.of_none(state, insomnia, aux)

    def get_params(self, rws_state: RWSState, /, *args: Any, **kwargs: Any) -> Params:
        """Constrained values of all parameters; programs that branch may have to run several times to meet them."""
        check_state(rws_state, RWSState, "the first argument of get_params")
        state, arguments = rws_state.plain, Arguments.of(args, kwargs, self.loss.model)
        check_takes(self.loss.model, "model", args, kwargs)
        if self.loss.options.trains_phi_on_wake:  # else it runs on dreams alone, perhaps in other arguments
            check_takes(self.loss.guide, "guide", args, kwargs)
        params, names = {}, state.theta.keys() | state.phi.keys()
        found = self.loss, (state.theta, state.phi), jax.random.key(0), arguments
        how: dict[str, Any] = {"mutable_state": state.mutable_state or {}, "is_thorough": False}
        for runs in itertools.chain(
            pilots(*found, **how), map(partial(run_pilot, *found, **how), range(self.num_runs))
        ):
            for run in runs:
                params |= constrained_values(run)
            if params.keys() >= names:
                break
        check_all_found(names, params)
        return {name: value for name, value in params.items() if jax.tree.leaves(value)}

    def check_compiles(self, rws_state: RWSState, /, *args: Any, **kwargs: Any) -> None:
        """Whether programs compile with these arguments, which may be others than those of `init`."""
        state, arguments = rws_state.plain, Arguments.of(args, kwargs, self.loss.model)
        how: dict[str, Any] = {"mutable_state": state.mutable_state or {}, "is_thorough": False}
        run = partial(run_pilot, self.loss, (state.theta, state.phi), **how)
        check_compiles(run, jax.random.key(0), arguments, self.loss.model)

    def check_state(self, rws_state: RWSState, /, *args: Any, **kwargs: Any) -> None:
        """Whether training can go on from a state."""
        state, arguments = rws_state.plain, Arguments.of(args, kwargs, self.loss.model)
        self.kinds.check(state, lambda: self._like_init(state, arguments))

    def _initial_values(self, rng_key: jax.Array, arguments: Arguments) -> tuple[Params, Params, MutableState | None]:
        found = initial_values(self.loss, rng_key, arguments, self.compared)
        return found.theta, found.phi, found.mutable_state

    def _insomnia(self, step: jax.Array) -> jax.Array:
        insomnia = self.loss.options.insomnia
        value = insomnia(step) if callable(insomnia) else insomnia
        check_scheduled_insomnia(value)
        value = jnp.asarray(value, float)
        # A schedule that leaves [0, 1] shows at run time only: as NaN it stops the update, and the info reports it.
        return jnp.where((value >= 0.0) & (value <= 1.0), value, jnp.nan)

    def _like_init(self, state: RWSState, arguments: Arguments) -> RWSState:
        """A state of the kind that `init` would make of these arguments."""
        if not self.loss.executor.ragged:
            try:
                return jax.eval_shape(self.init, jax.random.key(0), *arguments.args, **arguments.kwargs).plain
            except CONCRETIZATION_ERRORS as error:
                fail_static(error)
        *params, mutable_state = self._initial_values(jax.random.key(0), arguments)
        # There may be more, in branches that were not taken.
        theta, phi = (_with_all_of(old, found) for found, old in zip(params, (state.theta, state.phi), strict=True))
        return state._replace(
            theta=theta,
            phi=phi,
            theta_opt_state=self.updates.theta_optimizer.init(theta),
            phi_opt_state=self.updates.phi_optimizer.init(phi),
            mutable_state=((state.mutable_state or {}) | (mutable_state or {})) or None,
        )


def functions_of(loss: StepLoss, updates: Updates, phi_steps: int) -> RWS:
    """``init``, ``step`` and ``get_params``, the last two compiled as far as the programs can be."""
    trainer = Trainer(loss, updates, phi_steps, updates.of_guide, updates.of_both)
    compiled = {"of_guide": jax.jit(updates.of_guide), "of_both": jax.jit(updates.of_both)}
    in_python = replace(trainer, loop=_python_loop, num_runs=_MAX_RUNS, **compiled)
    max_ess = loss.options.wake.estimator.num
    if trainer.loss.options.execution.one_by_one:
        step = NotJittable(in_python.step, max_ess, evaluate=NotJittable(in_python.evaluate, max_ess))
        return RWS(trainer.init, step, in_python.get_params)

    def dispatched(name: str, **attributes: Any) -> Dispatched:
        compiled = jax.jit(automatic(getattr(trainer, name)))
        rest = trainer.check_compiles, loss.executor, loss.model
        return Dispatched(compiled, getattr(in_python, name), *rest, **attributes)

    evaluate = dispatched("evaluate", max_ess=max_ess, check_state=trainer.check_state)
    step = dispatched("step", max_ess=max_ess, evaluate=evaluate, check_state=trainer.check_state)
    return RWS(trainer.init, step, dispatched("get_params"))


def _with_all_of(old: Params, found: Params) -> Params:
    """What has been found of parameters, and what else there is in a state."""
    both = lambda value, other: isinstance(value, dict) and isinstance(other, dict)
    return {
        name: _with_all_of(value, found[name]) if both(value, found.get(name)) else found.get(name, value)
        for name, value in old.items()
    }


def _python_loop(body: Callable, carry: Any, xs: jax.Array) -> tuple[Any, None]:
    for x in xs:
        carry, _ = body(carry, x)
    return carry, None
