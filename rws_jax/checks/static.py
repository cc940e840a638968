"""What arguments of programs may be, and what messages call them."""

import inspect
import textwrap
from typing import Any, NoReturn

import jax

from rws_jax.core.errors import describe, fail
from rws_jax.core.layers import unwrapped
from rws_jax.core.static import Static


def argument_name(path: tuple, program: Any = None) -> str:
    """What messages call an argument, or a part of one, by its path in ``(args, kwargs)``."""
    which, key, *inside = path
    rest = jax.tree_util.keystr(tuple(inside))
    if which.idx == 1:
        return f"argument {key.key!r}{rest}"
    name = _positional_names(program).get(key.idx)
    return f"argument {key.idx}{rest}" if name is None else f"argument {name!r}{rest}"


def static_arguments(arguments: tuple, program: Any) -> dict[str, str]:
    """The static values among ``(args, kwargs)`` by name, each in one short line."""
    is_static = lambda node: isinstance(node, Static)
    nodes = jax.tree_util.tree_leaves_with_path(arguments, is_leaf=is_static)
    short = lambda value: textwrap.shorten(getattr(value, "__name__", repr(value)), 40, placeholder=" ...")
    named = [(argument_name(path, program), node) for path, node in nodes if is_static(node)]
    return {name.removeprefix("argument ").replace("'", "", 2): short(node.value) for name, node in named}


def fail_table(name: str, value: Any) -> NoReturn:
    """A table of columns is accessed by names, which an array would not have."""
    fail(
        TypeError,
        f"{name} is a {_type_of(value)}, which JAX cannot trace",
        expected="arrays, numbers, trees of these, or hashable values that are static",
        found=f"a {_type_of(value)} of shape {getattr(value, 'shape', 'unknown')}",
        hint="pass an array, table.to_numpy(), or a dict of its columns, {name: table[name].to_numpy(), ...}",
    )


def fail_unreadable(name: str, value: Any, problem: str) -> NoReturn:
    """An array that numpy cannot read as numbers."""
    fail(
        TypeError,
        f"{name} is no array of numbers",
        expected="numbers or truth values, which numpy.asarray can read",
        found=f"a {_type_of(value)}: {problem}",
        hint="encode text and categories as integers, drop missing values; of torch, pass x.detach().cpu().numpy()",
    )


def fail_unhashable(name: str, value: Any) -> NoReturn:
    """A value that is neither traced nor static."""
    fail(
        TypeError,
        f"{name} is neither an array nor hashable",
        expected="arrays, numbers, trees of these, or hashable values that are static",
        found=describe(value),
        hint="register its class by jax.tree_util.register_dataclass if it holds arrays, or bind it by"
        " functools.partial(model, ...)",
    )


def _type_of(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"


def _positional_names(program: Any) -> dict[int, str]:
    try:
        parameters = inspect.signature(unwrapped(program)).parameters.values()
    except (TypeError, ValueError):  # not every callable has a signature
        return {}
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return {position: p.name for position, p in enumerate(p for p in parameters if p.kind in kinds)}
