"""From gradients to the next state: two optimizers, and a guard that lets nothing in that is not finite."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rws_jax.core.layers import MutableState, Params
from rws_jax.core.trees import all_finite, chosen, stays_finite
from rws_jax.training.optimizers import Optimizer
from rws_jax.training.state import RWSInfo, RWSState
from rws_jax.training.step_loss import LossAux


class Trained(NamedTuple):
    """One program's parameters and the state of their optimizer."""

    params: Params
    opt_state: optax.OptState


class Progress(NamedTuple):
    """What the updates of one step have changed so far, and whether all of them were finite."""

    guide: Trained
    mutable_state: MutableState | None
    finite: jax.Array

    @classmethod
    def of(cls, state: RWSState) -> "Progress":
        """At the beginning of a step."""
        return cls(Trained(state.phi, state.phi_opt_state), state.mutable_state, jnp.array(True))


@dataclass(frozen=True)
class Updates:
    """Updates of the guide alone, and of both programs."""

    theta_optimizer: Optimizer
    phi_optimizer: Optimizer
    has_dreams: bool

    def of_guide(self, old: Progress, grads: Params, insomnia: jax.Array, aux: LossAux) -> Progress:
        """After one of several updates of the guide."""
        new, has_signal, still_finite = self._of_phi(old, grads, insomnia, aux)
        finite = old.finite & still_finite
        guide = chosen(finite & has_signal, new, old.guide)
        return Progress(guide, chosen(finite, aux.mutable_state, old.mutable_state), finite)

    def of_both(
        self,
        state: RWSState,
        rng_key: jax.Array,
        progress: Progress,
        grads: tuple[Params, Params],
        insomnia: jax.Array,
        aux: LossAux,
    ) -> tuple[RWSState, RWSInfo]:
        """The next state and its info; the guide may have been updated before."""
        model = Trained(state.theta, state.theta_opt_state)
        new_model = _update(self.theta_optimizer, grads[0], model, aux.of_theta)
        new_guide, has_signal, finite = self._of_phi(progress, grads[1], insomnia, aux)

        # With every unit dead, wake has nothing to say: theta stays, and so does phi unless there are dreams.
        norms = [optax.tree.norm(tree) for tree in grads]  # not finite if any gradient, or its square, is not
        finite = progress.finite & finite & has_signal & all_finite(norms)
        finite = finite & stays_finite(new_model.params, model.params)
        model = chosen(finite & aux.alive, new_model, model)
        guide = chosen(finite, new_guide, Trained(state.phi, state.phi_opt_state))
        # Key and count go on in any case: the next step draws anew, where the same draws would fail again.
        new_state = RWSState(
            theta=model.params,
            phi=guide.params,
            theta_opt_state=model.opt_state,
            phi_opt_state=guide.opt_state,
            rng_key=rng_key,
            step=state.step + 1,
            mutable_state=chosen(finite, aux.mutable_state, state.mutable_state),
        )
        info = _info(aux, insomnia, finite)
        if jax.tree.leaves(state.theta):
            info = info._replace(theta_grad_norm=norms[0])
        if jax.tree.leaves(state.phi):
            info = info._replace(phi_grad_norm=norms[1])
        return new_state, info

    def of_none(self, state: RWSState, insomnia: jax.Array, aux: LossAux) -> RWSInfo:
        """The info of losses alone, which nothing is updated on."""
        finite = jnp.isfinite(aux.total) & self._has_signal(insomnia, aux)
        return _info(aux, insomnia, finite)._replace(step=state.step)

    def _has_signal(self, insomnia: jax.Array, aux: LossAux) -> jax.Array:
        """Whether there is anything for the guide to learn from: dreams, or a particle that has a weight."""
        return aux.alive | (insomnia < 1.0) if self.has_dreams else aux.alive

    def _of_phi(
        self, old: Progress, grads: Params, insomnia: jax.Array, aux: LossAux
    ) -> tuple[Trained, jax.Array, jax.Array]:
        """The new guide, whether there was anything to learn from, and whether all that is new is finite."""
        new = _update(self.phi_optimizer, grads, old.guide, aux.metrics["phi_loss"])
        has_signal = self._has_signal(insomnia, aux)
        finite = all_finite((aux.total, optax.tree.norm(grads))) & stays_finite(new.params, old.guide.params)
        return new, has_signal, finite & stays_finite(aux.mutable_state, old.mutable_state)


def _update(optimizer: Optimizer, grads: Params, old: Trained, loss: jax.Array | None) -> Trained:
    if loss is None:
        return old  # there is nothing to train
    updates, opt_state = optimizer.update(grads, old.opt_state, old.params, loss)
    params: Any = optax.apply_updates(old.params, updates)
    return Trained(params, opt_state)


def _info(aux: LossAux, insomnia: jax.Array, finite: jax.Array) -> RWSInfo:
    """All but the norms of gradients."""
    info: dict[str, Any] = dict.fromkeys(RWSInfo._fields) | aux.metrics | {"insomnia": insomnia, "finite": finite}
    return RWSInfo(**info)
