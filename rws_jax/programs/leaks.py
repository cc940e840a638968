"""Real data must not reach dreams, nor the guide in sleep: both run again with other data, and nothing may change.

Only what is known can be compared, so nothing is checked where values are traced.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.checks.dreams import name_of
from rws_jax.core.errors import fail
from rws_jax.core.layers import ProgramFn, unwrapped
from rws_jax.core.sites import Trace, latent_sites
from rws_jax.core.trees import is_traced
from rws_jax.programs.density import log_density
from rws_jax.programs.program import Arguments, Index, Program
from rws_jax.programs.run import Draws, replay, sample, simulate


def check_reads_no_data(
    model: Program,
    arguments: Arguments,
    index: Index,
    run: Trace,
    data: dict[str, jax.Array],
    data_sites: tuple[str, ...],
) -> None:
    """Dreams must not depend on the real data: with other data in their place, the same seed gives the same dreams."""
    if is_traced((model, arguments, data)):
        return  # not known yet
    real = _real_data(model, arguments, index, data)
    for name, other in _with_other_data(model.fn, arguments, real, data, by_name=True):
        again, other_data = simulate(model, other, index, data_sites)
        if not _equal((Draws.of(run).latents, data), (Draws.of(again).latents, other_data)):
            _fail_reads_data(name)


def check_shows_no_data(
    model: Program,
    guide: Program,
    arguments: Arguments,
    shown: Arguments,
    index: Index,
    run: Trace,
    data: dict[str, jax.Array],
) -> None:
    """Nor must the guide see real data in sleep: with others in their place, the same dream has the same density."""
    if is_traced((shown, data)):
        return  # not known yet
    real = _real_data(model, arguments, index, data)
    density = lambda run: {name: log_density(s["fn"], s["value"], None) for name, s in latent_sites(run).items()}
    for name, other in _with_other_data(guide.fn, shown, real, data, by_name=False):  # where names stand for dreams
        again = replay(guide, other, index, Draws.of(run))
        if not _equal(density(run), density(again)):
            _fail_shows_data(name, guide.fn)


def _real_data(model: Program, arguments: Arguments, index: Index, data: dict[str, jax.Array]) -> dict[str, Any]:
    """What the sites of `data` observe."""
    return {name: site["value"] for name, site in sample(model, arguments, index).items() if name in data}


def _with_other_data(
    program: ProgramFn, arguments: Arguments, observed: dict[str, Any], dreamt: dict[str, Any], *, by_name: bool
) -> Iterator[tuple[str, Arguments]]:
    """For each argument that holds the data of an observed site: the site, and the arguments with dreamt data there.

    An argument holds them if it is or contains the very array that the site observes or, `by_name`, is named so.
    """
    try:
        bound = inspect.signature(program).bind_partial(*arguments.args, **arguments.kwargs)
    except (TypeError, ValueError):  # not every callable has a signature
        return
    for name, value in observed.items():
        is_value = lambda leaf, value=value: leaf is value
        if by_name and name in bound.arguments:
            holders, holds = [name], lambda leaf: True
        else:
            holders = [a for a, real in bound.arguments.items() if any(map(is_value, jax.tree.leaves(real)))]
            holds = is_value
        if len(holders) == 1:  # the same array in two arguments is data in the one and a covariate in the other
            real = bound.arguments[holders[0]]
            other = jax.tree.map(partial(_other, holds=holds, dreamt=dreamt[name]), real)
            shown = inspect.BoundArguments(bound.signature, bound.arguments | {holders[0]: other})
            yield name, Arguments(shown.args, shown.kwargs)


def _other(real: Any, holds: Callable[[Any], bool], dreamt: jax.Array) -> Any:
    """Dreamt data in place of real ones; where they are a minibatch, the real ones in another order."""
    if not (holds(real) and isinstance(real, jax.Array | np.ndarray | int | float)):
        return real
    if jnp.shape(real) == jnp.shape(dreamt):
        return dreamt.astype(jnp.asarray(real).dtype)
    return jnp.flip(real) if jnp.ndim(real) else real


def _equal(tree: Any, other: Any) -> bool:
    same = lambda a, b: a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))
    as_numpy = lambda tree: jax.tree.map(np.asarray, tree)
    alike = jax.tree.structure(tree) == jax.tree.structure(other)
    return alike and jax.tree.all(jax.tree.map(same, as_numpy(tree), as_numpy(other)))


def _fail_reads_data(name: str) -> NoReturn:
    """Parts of a dream would be real data."""
    fail(
        ValueError,
        f"the model's dreams depend on the real data of observed site {name!r}",
        expected="a model that reads them by obs=... alone: it has to dream up all data by itself",
        found="dreams that change with the data, for the same seed",
        hint="pass what is not to be dreamt (totals, a shifted copy) as an argument of its own, let a scan carry what"
        " is, or use insomnia=1.0",
    )


def _fail_shows_data(name: str, guide: Any) -> NoReturn:
    """The guide would learn from dreamt latents and real data."""
    fail(
        ValueError,
        f"the guide {name_of(unwrapped(guide))} reads real data of observed site {name!r} in sleep",
        expected="a guide that reads data where it is shown dreams",
        found="log densities that change with the real data, for the same dreams",
        hint=f"name the argument that holds them {name!r}, read them from 'observations', or pass"
        " simulated_data_to_args",
    )
