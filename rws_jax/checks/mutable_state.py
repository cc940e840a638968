"""What mutable state has to be: one for all particles, of one program, and of the same kind after a run as before."""

from collections.abc import Iterable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from rws_jax.core.errors import fail
from rws_jax.core.layers import MutableState


def check_mutable(role: str, name: str, values: MutableState) -> None:
    """A mutable site must have a state, which somebody carries from run to run."""
    if name not in values:
        fail(
            ValueError,
            f"the {role} has mutable site {name!r}, and nothing carries its state from run to run",
            expected="the state of make_step, which carries it, or a site that a handler has fixed",
            found=f"mutable sites {sorted(values)} in the state" if values else "no mutable state",
            hint="train by rws_jax.make_step; importance_sample and other functions of trained programs take"
            f" mutable_state=state.mutable_state, a loss by itself numpyro.handlers.substitute({role}, data={{"
            f"{name!r}: ...}})",
        )


def check_one_program(model_sites: Iterable[str], guide_sites: Iterable[str]) -> None:
    """Two programs would each make a new state of the old one."""
    names = sorted(set(model_sites) & set(guide_sites))
    if names:
        fail(
            ValueError,
            f"mutable sites {names} occur in both model and guide",
            expected="each mutable site in one of the two programs",
            found=f"{names} in both",
            hint="give the modules of the two programs different names",
        )


def check_same_kind(name: str, old: Any, new: Any) -> None:
    """A state whose arrays change their shapes or types cannot be the input of the next step."""
    before, after = (_kinds(state) for state in (old, new))
    differ = [key for key in before | after if before.get(key) != after.get(key)]
    if differ:
        fail(
            ValueError,
            f"mutable site {name!r} changes its shape or type as the program runs",
            expected=", ".join(f"{key or 'a value'} {before.get(key, 'absent')}" for key in differ) + ", as before",
            found=", ".join(f"{key or 'a value'} {after.get(key, 'absent')}" for key in differ),
            hint="start from arrays of the shapes and types that the program leaves there: 0.0 rather than 0, say",
        )


def fail_depends_on_draws(name: str, role: str, *, of_datum: bool) -> NoReturn:
    """Particles would each have a state of their own."""
    which = "what particles draw, or on a single datum" if of_datum else "what particles draw"
    fail(
        ValueError,
        f"mutable site {name!r} of the {role} depends on {which}",
        expected="a state that parameters and the whole batch determine, the same for all particles",
        found=f"a new state that is another for each {'particle or datum' if of_datum else 'particle'}",
        hint="normalise what depends on draws by LayerNorm or GroupNorm, or keep the state as it is"
        " (use_running_average=True)" + ("; statistics of a batch need a plate over the data" if of_datum else ""),
    )


def fail_changed_in_control_flow(role: str, name: str) -> NoReturn:
    """NumPyro does not carry mutable state through the steps of a scan, or out of a branch of cond."""
    fail(
        ValueError,
        f"the {role} changes mutable site {name!r} inside a scan or cond body, where NumPyro does not support it",
        expected="layers that have state (BatchNorm, nnx.Dropout) outside of bodies of numpyro.contrib.control_flow",
        found=f"a module with state {name!r} that is called inside of one",
        hint="call it on the whole sequence before the scan, or use layers without state, LayerNorm or flax.linen's"
        " Dropout",
    )


def fail_branching(names: Iterable[str]) -> NoReturn:
    """What particles leave behind may depend on their paths."""
    fail(
        ValueError,
        f"programs have branching sites, and mutable sites {sorted(names)}",
        expected="no mutable state beside infer={'branching': True}: it might depend on the branch",
        found=f"mutable sites {sorted(names)}",
        hint="fix them by numpyro.handlers.substitute, use layers without state, or branch by"
        " numpyro.contrib.control_flow.cond or handlers.mask instead",
    )


def _kinds(state: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(keys): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for keys, leaf in leaves}
