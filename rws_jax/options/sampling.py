"""Options that functions of trained programs share: declared, documented and checked once, taken by a decorator."""

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import wraps
from typing import Any, TypeVar

from rws_jax.core.layers import MutableState, ProgramFn
from rws_jax.options import WakeOptions
from rws_jax.options.execution import ExecutionOptions

T = TypeVar("T")
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True)
class RunOptions(ExecutionOptions):
    """How trained programs run."""

    mutable_state: MutableState | None = field(
        default=None, metadata={"help": "``state.mutable_state``, for programs that have some."}
    )

    @property
    def execution(self) -> ExecutionOptions:
        """How particles run, a value: equal ones share what is compiled."""
        return ExecutionOptions(*(getattr(self, option.name) for option in fields(ExecutionOptions)))


@dataclass(frozen=True)
class SamplingOptions(RunOptions):
    """How particles of trained programs are drawn, to be weighed."""

    num_particles: int = field(default=1000, metadata={"help": "K, particles of each unit, at least 1."})
    defensive: float = field(
        default=0.0,
        metadata={"help": "share of particles that do not come from the guide; see `wake_phi_loss`."},
    )
    defensive_guide: ProgramFn | None = field(
        default=None, metadata={"help": "program that they come from, not seeded; default the model's prior."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number(self.num_particles, "num_particles", 1)

    @property
    def wake(self) -> WakeOptions:
        """How they are drawn."""
        return WakeOptions(self.num_particles, defensive=self.defensive, defensive_guide=self.defensive_guide)


def takes(kind: type[RunOptions]) -> Callable[[Callable[..., T]], Callable[..., T]]:
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
        called.__signature__ = signature.replace(parameters=[*before, *new, *after])  # type: ignore[attr-defined]
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
