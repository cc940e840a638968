"""The values that a state holds, which are not those that programs see."""

from collections.abc import Iterable
from typing import Any, NoReturn

import jax
from jax.tree_util import DictKey

from rws_jax.core.errors import fail


class Unconstrained(dict[str, Any]):
    """Values on the real line, by `numpyro.param` site: a dict that cannot be taken for one of parameters.

    It is read, changed and saved as any dict. Losses refuse it, and so do NumPyro's handlers (`Predictive`,
    `substitute`), which ask whether a site is in it.
    """

    def __contains__(self, name: object) -> bool:
        fail_unconstrained("parameters")

    def get(self, *args: Any) -> Any:
        """Refused, as it is what handlers do."""
        fail_unconstrained("parameters")

    def copy(self) -> "Unconstrained":
        """A copy of the same type."""
        return Unconstrained(self)

    def __or__(self, other: Any) -> "Unconstrained":
        return Unconstrained(dict(self) | dict(other))

    def __ror__(self, other: Any) -> "Unconstrained":
        return Unconstrained(dict(other) | dict(self))


def fail_unconstrained(what: str) -> NoReturn:
    """What is asked for are constrained values."""
    fail(
        TypeError,
        f"{what} are taken from a state, which holds unconstrained values",
        expected="the values that programs see, as get_params gives them",
        found="state.theta or state.phi, values on the real line",
        hint="pass rws.get_params(state, *args), which has the parameters of both programs",
    )


def _flatten(values: Unconstrained) -> tuple[list[Any], tuple[str, ...]]:
    names = tuple(sorted(values))
    return [values[name] for name in names], names


def _flatten_with_keys(values: Unconstrained) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
    leaves, names = _flatten(values)
    return [(DictKey(name), leaf) for name, leaf in zip(names, leaves, strict=True)], names


def _unflatten(names: tuple[str, ...], leaves: Iterable[Any]) -> Unconstrained:
    return Unconstrained(zip(names, leaves, strict=True))


jax.tree_util.register_pytree_with_keys(Unconstrained, _flatten_with_keys, _unflatten, _flatten)
