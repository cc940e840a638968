"""From gradients to the next state: two optimizers, and a guard that lets nothing in that is not finite."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from rws_jax.handlers import Params
from rws_jax.state import RWSInfo, RWSState
from rws_jax.trees import all_finite, select, stays_finite


class Updates(NamedTuple):
    """Of the guide alone, and of both programs."""

    of_guide: Callable[..., tuple]
    of_both: Callable[..., tuple[RWSState, RWSInfo]]

    @classmethod
    def by(
        cls,
        theta_optimizer: optax.GradientTransformation,
        phi_optimizer: optax.GradientTransformation,
        has_dreams: bool,
    ) -> "Updates":
        """With these optimizers."""

        def update_phi(old: tuple, grads: Params, share: jax.Array, total: jax.Array, alive: jax.Array) -> tuple:
            """The new guide, whether it has heard of anything to learn, and whether all of it is finite."""
            new = _update(phi_optimizer, grads, *old)
            heard = alive | (share < 1.0) if has_dreams else alive
            return new, heard, all_finite((total, optax.tree.norm(grads))) & stays_finite(new[0], old[0])

        def of_guide(
            old: tuple, grads: Params, share: jax.Array, total: jax.Array, alive: jax.Array, finite: jax.Array
        ) -> tuple:
            new, heard, still_finite = update_phi(old, grads, share, total, alive)
            finite = finite & still_finite
            return select(finite & heard, new, old), finite

        def of_both(
            state: RWSState,
            rng_key: jax.Array,
            guide_state: tuple,
            grads: tuple[Params, Params],
            share: jax.Array,
            total: jax.Array,
            alive: jax.Array,
            finite: jax.Array,
            told: dict[str, jax.Array],
        ) -> tuple[RWSState, RWSInfo]:
            model_state = state.theta, state.theta_opt_state
            new_model = _update(theta_optimizer, grads[0], *model_state)
            new_guide, heard, guide_finite = update_phi(guide_state, grads[1], share, total, alive)

            # With every unit dead, wake has nothing to say: theta stays, and so does phi unless there are dreams.
            norms = [optax.tree.norm(tree) for tree in grads]  # not finite if any gradient, or its square, is not
            finite = finite & heard & guide_finite & all_finite(norms) & stays_finite(new_model[0], model_state[0])
            theta, theta_opt_state = select(finite & alive, new_model, model_state)
            phi, phi_opt_state = select(finite, new_guide, (state.phi, state.phi_opt_state))
            # Key and count go on in any case: the next step draws anew, where the same draws would fail again.
            new_state = RWSState(theta, phi, theta_opt_state, phi_opt_state, rng_key=rng_key, step=state.step + 1)
            info: dict[str, Any] = dict.fromkeys(RWSInfo._fields) | told | {"insomnia": share, "finite": finite}
            if state.theta:
                info["theta_grad_norm"] = norms[0]
            if state.phi:
                info["phi_grad_norm"] = norms[1]
            return new_state, RWSInfo(**info)

        return cls(of_guide, of_both)

    def compiled(self) -> "Updates":
        """For steps that are not."""
        return Updates(*map(jax.jit, self))


def _update(optimizer: optax.GradientTransformation, grads: Params, params: Params, opt_state: Any) -> tuple:
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
