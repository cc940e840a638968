"""A decorator for functions that share options, so that these are declared and explained once."""

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from functools import wraps
from typing import Any, TypeVar, cast

T = TypeVar("T")
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def takes(kind: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorate a function whose first argument, `options`, is of this kind: its callers pass each option by name.

    Signature and docstring become those of a function that has written them out.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        declared = {option.name: option for option in _own_first(kind)}

        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> T:
            own = {name: kwargs.pop(name) for name in declared if name in kwargs}
            return function(kind(**own), *args, **kwargs)

        signature = inspect.signature(function)
        _, *before = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        after = [p for p in signature.parameters.values() if p.kind == p.VAR_KEYWORD]
        new = [inspect.Parameter(o.name, _KEYWORD, default=o.default, annotation=o.type) for o in declared.values()]
        cast(Any, called).__signature__ = signature.replace(parameters=[*before, *new, *after])
        called.__doc__ = _explained(function.__doc__ or "", list(declared.values()))
        return called

    return decorate


def _own_first(kind: Any) -> list[Field]:
    """Options in the order of a signature: those that only few functions have come first."""
    base = kind.__base__
    inherited = _own_first(base) if is_dataclass(base) else []
    return [option for option in fields(kind) if option.name not in {other.name for other in inherited}] + inherited


def _explained(docstring: str, options: list[Field]) -> str:
    """A docstring in Google's form, with these arguments in place of the line on `options`."""
    texts = [f"{option.name}: {option.metadata['help']}" for option in options]
    lines = [textwrap.fill(text, 120, initial_indent=" " * 6, subsequent_indent=" " * 8) for text in texts]
    return re.sub(r"^      options: .*$", lambda _: "\n".join(lines), docstring, flags=re.MULTILINE)
