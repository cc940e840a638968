"""Whether training can go on from a state: one that was saved may be of another model, or of other options."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rws_jax.checks.arguments import check_rng_key
from rws_jax.core.errors import fail
from rws_jax.training.state import RWSState


class StateKinds:
    """The kinds of states that `init` has made, or would make: names, shapes and types of all arrays."""

    def __init__(self) -> None:
        self._kinds: set[tuple] = set()

    def add(self, state: RWSState) -> None:
        """A state of this kind may go on."""
        self._kinds.add(_kind(state))

    def check(self, state: RWSState, expected: Callable[[], RWSState]) -> None:
        """A state of no known kind must be like the one expected, which is asked for only then."""
        if _kind(state) not in self._kinds:
            _check_same(state, expected())
            self.add(state)
        hint = "restore it by jax.random.wrap_key_data, if its data were saved"
        check_rng_key(state.rng_key, "the key of the state", hint)


def _kind(state: RWSState) -> tuple:
    leaves, treedef = jax.tree.flatten(state._replace(rng_key=None))
    return treedef, tuple(_describe(leaf) for leaf in leaves)


def _check_same(found: RWSState, expected: RWSState) -> None:
    have, need = _by_name(found), _by_name(expected)
    differ = [name for name in need | have if need.get(name) != have.get(name)]
    if differ:
        shown = differ[:4]
        more = f", and {len(differ) - len(shown)} more" if len(differ) > len(shown) else ""
        fail(
            ValueError,
            "the state is of another model, guide, optimizer or precision",
            expected=", ".join(f"{name} {need.get(name, 'absent')}" for name in shown) + more,
            found=", ".join(f"{name} {have.get(name, 'absent')}" for name in shown) + more,
            hint=_SEEDS if _is_stacked(found, expected) else _HINT,
        )
    for name in ("theta", "phi", "theta_opt_state", "phi_opt_state", "mutable_state"):
        need, have = (jax.tree.structure(getattr(state, name)) for state in (expected, found))
        if need != have:
            fail(
                ValueError,
                f"{name} of the state is of another optimizer, or has lost the types of its containers",
                expected=_short(need),
                found=_short(have),
                hint=_HINT,
            )


_HINT = "call make_step as in the run that saved it, and restore into the tree of rws.init(rng_key, *args)"


_SEEDS = "each array has one axis more, as of several seeds: call jax.vmap(rws.step, in_axes=(0, None))"


def _is_stacked(found: RWSState, expected: RWSState) -> bool:
    leaves = [jax.tree.leaves(state._replace(rng_key=None)) for state in (found, expected)]
    shapes = [[jnp.shape(leaf) for leaf in of_state] for of_state in leaves]
    return len(shapes[0]) == len(shapes[1]) and all(
        have[1:] == need and have for have, need in zip(*shapes, strict=True)
    )


def _short(structure: Any) -> str:
    text = str(structure)
    return text if len(text) < 300 else f"{text[:300]}..."


def _by_name(state: RWSState) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(state._replace(rng_key=None))
    return {jax.tree_util.keystr(keys).lstrip("."): _describe(leaf) for keys, leaf in leaves}


def _describe(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
