"""Mutable state of programs (running statistics, counts of random numbers): where it starts, and that there is one.

State that parameters and data determine is equal for all particles, so that of the first particle is that of all. What
depends on draws, or on a single datum of many, has no such value, and is refused before training.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.checks.mutable_state import check_one_program, check_same_kind, fail_depends_on_draws
from rws_jax.core.layers import MutableState, Params
from rws_jax.core.sites import mutable_sites
from rws_jax.core.trees import is_traced, strong
from rws_jax.programs.program import Arguments
from rws_jax.programs.run import mutable_start
from rws_jax.training.pilot import PilotRuns
from rws_jax.training.step_loss import StepLoss

_StateOf = Callable[[Any, Any], MutableState]  # of a particle's number and its datum


class MutableSites:
    """The mutable sites that pilot runs have met: their state before the run, and whose they are."""

    def __init__(self, *runs: PilotRuns) -> None:
        self.state: MutableState = {}
        self._roles: dict[str, str] = {}
        for each in runs:
            self.add(each)

    def add(self, runs: PilotRuns) -> None:
        """Take note of the sites of one particle; others may have more, if programs branch."""
        check_one_program(mutable_sites(runs.model), mutable_sites(runs.guide))
        for role, run in (("model", runs.model), ("guide", runs.guide)):
            # Copies, as the arrays may be those of a module, and a state may be donated.
            start = jax.tree.map(jnp.copy, strong(mutable_start(run)))
            self.state = start | self.state
            self._roles |= dict.fromkeys(start, role)

    def check(
        self, loss: StepLoss, params: tuple[Params, Params], rng_key: jax.Array, arguments: Arguments
    ) -> MutableState:
        """Check that wake, which alone makes new state, leaves the same behind with every particle; return the old."""
        if not self.state or not (loss.options.trains_phi_on_wake or params[0]):
            return self.state
        rng_keys = jax.random.split(jax.random.clone(rng_key), 3)
        programs = loss.programs(params, tuple(rng_keys), arguments, self.state)
        num_data = loss.executor.data.count(programs)
        state_of: _StateOf = lambda number, datum: loss.next_mutable_state(programs, number, datum) or {}
        if loss.executor.ragged:  # Python may ask for values, which are known
            new = state_of(0, 0)
            names = _differ(new, [state_of(1, 0), *([state_of(0, 1)] if (num_data or 1) > 1 else [])])
        else:
            new, names = jax.eval_shape(state_of, 0, 0), _depend(state_of, self.state)
        for name in names:
            fail_depends_on_draws(name, self._roles[name], of_datum=num_data is not None)
        for name, old in self.state.items():
            check_same_kind(name, old, new[name])
        return self.state


def _depend(state_of: _StateOf, names: MutableState) -> list[str]:
    """The sites whose state depends on the particle or on its datum, which takes no values to find out."""
    if not _is_mapped(state_of):
        return []
    return [name for name in names if _is_mapped(lambda number, datum, name=name: state_of(number, datum)[name])]


def _is_mapped(function: _StateOf) -> bool:
    try:
        jax.eval_shape(jax.vmap(function, out_axes=None), jnp.arange(2), jnp.arange(2))
    except ValueError:  # by this JAX says that there is an axis of particles in the result
        return True
    return False


def _differ(state: MutableState, others: list[MutableState]) -> list[str]:
    """The sites whose state is another with the second particle, or with the second datum, as far as it is known."""
    if is_traced((state, others)):
        return []
    return [name for name, own in state.items() if any(not _equal(own, other[name]) for other in others)]


def _equal(tree: Any, other: Any) -> bool:
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    numbers = lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    same = lambda a, b: np.array_equal(numbers(a), numbers(b), equal_nan=True)
    return jax.tree.structure(tree) == jax.tree.structure(other) and jax.tree.all(jax.tree.map(same, tree, other))
