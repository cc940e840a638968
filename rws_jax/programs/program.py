"""The NumPyro programs that a particle runs, as data: keys, parameters and arguments are leaves of a tree."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.handlers import seed

from rws_jax.checks.sites import fail_unseeded
from rws_jax.checks.static import argument_name, fail_table, fail_unhashable, fail_unreadable
from rws_jax.core.errors import first_line
from rws_jax.core.keys import quick
from rws_jax.core.layers import MutableState, Params, ProgramFn, hashable, layers
from rws_jax.core.site_functions import at_site
from rws_jax.core.static import Static, is_foreign, is_traceable, unwrapped_static
from rws_jax.core.trees import stopped
from rws_jax.programs.keys import keys


class Index(NamedTuple):
    """Which particle of which datum runs.

    Where a particle runs `alone`, its sites may be others than its neighbours': Python may branch on what it draws.
    """

    particle: jax.Array | int
    datum: jax.Array | int | None = None  # None: the programs are of all data
    alone: bool = False
    local: "LocalIndex | None" = None  # None: what is drawn in inner plates has the particle's own number

    def number_in(self, plates: Iterable[Any]) -> jax.Array | int:
        """The number that a site in these plates, frames of `cond_indep_stack`, folds into its key."""
        return self.particle if self.local is None else self.local.number_in(plates, self.particle)


class LocalIndex(NamedTuple):
    """Which of the local particles runs: one number for each level of plates."""

    numbers: tuple[jax.Array | int, ...]
    size: int  # how many local particles there are for each particle further out
    common: bool  # whether random numbers are the same for all particles further out
    # The plates of each level, and which numbers are its own (the last) and those of the levels around it.
    levels: tuple[tuple[frozenset[Any], tuple[int, ...]], ...]

    def number_in(self, plates: Iterable[Any], particle: jax.Array | int) -> jax.Array | int:
        """A number for each local particle or, unless they are common, for each of each particle further out."""
        within = set(plates)
        around = [(len(own), chain) for own, chain in self.levels if own <= within]
        if not around:
            return particle
        numbers = [self.numbers[number] for number in max(around)[1]]
        return numbers[-1] if self.common else reduce(lambda outer, own: outer * self.size + own, numbers, particle)


class Arguments(NamedTuple):
    """What a program is called with: a tree of arrays, in which all else is static."""

    args: tuple
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, args: tuple, kwargs: dict[str, Any], program: ProgramFn | None = None) -> "Arguments":
        """Arguments as users pass them; messages call them what `program` does.

        Numbers and arrays are traced, those of other libraries once numpy has read them. Flags, text, functions and
        whatever else has a hash are static, and so are namespaces of such values.
        """
        if all(map(is_traceable, jax.tree.leaves((args, kwargs)))):
            return cls(args, kwargs)
        as_leaf = lambda path, leaf: leaf if is_traceable(leaf) else _taken(leaf, path, program)
        return cls(*jax.tree_util.tree_map_with_path(as_leaf, (args, kwargs)))

    @property
    def plain(self) -> "Arguments":
        """The same with static values as users have passed them, for functions of theirs."""
        return Arguments(*unwrapped_static(tuple(self)))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["rng_key", "params", "mutable_state", "held"],
    meta_fields=["fn", "role", "hide_types", "is_seeded"],
)
@dataclass(frozen=True)
class Program:
    """One NumPyro program, with its key, parameters and mutable state. The role says in messages which one it is."""

    fn: ProgramFn
    role: str
    rng_key: jax.Array | None
    params: Params | None  # None: param sites take their initial values
    hide_types: tuple[str, ...] = ()  # of numpyro.handlers.seed
    is_seeded: bool = False  # whether `fn` has the key in it, inside of other handlers
    mutable_state: MutableState | None = None  # as `params`; an empty one says that none is carried from run to run
    held: Params | None = None  # the model's parameters, as `params`, for what a guide reads of them

    @classmethod
    def of_seeded(cls, program: ProgramFn, role: str, params: Params | None) -> "Program":
        """Take the key out of ``numpyro.handlers.seed(fn, rng_key)``, if that is the outermost handler."""
        if isinstance(program, seed) and program.rng_key is not None and program.fn is not None:
            rng_key: Any = program.rng_key
            return cls(hashable(program.fn), role, rng_key, params, tuple(program.hide_types), mutable_state={})
        inner: Iterator[Any] = (layer.rng_key for layer in layers(program) if isinstance(layer, seed))
        rng_key = next((rng_key for rng_key in inner if rng_key is not None), None)
        return cls(hashable(program), role, rng_key, params, is_seeded=True, mutable_state={})

    def seeded(self, *, draws: bool) -> ProgramFn:
        """The program, seeded for a run that draws at its sample sites, or one that is given their values."""
        if self.is_seeded:
            return self.fn
        # One key is used in several runs on purpose, which JAX's check of reuse has to know.
        return keys(self.fn, _quick_clone(self.rng_key), self.hide_types, draws=draws)

    def key_of(self, index: Index) -> jax.Array:
        """The program's key for one datum, the same for all of its particles."""
        if self.rng_key is None:
            fail_unseeded(self.role, "the program")
        rng_key = jax.random.clone(self.rng_key)
        return rng_key if index.datum is None else jax.random.fold_in(rng_key, index.datum)

    def stopped(self) -> "Program":
        """The same program with its parameters held constant."""
        return replace(self, params=stopped(self.params))  # removes the gradient of whoever owns them


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["model", "own_guide", "defensive_guide", "arguments"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Programs:
    """Model and guide, a defensive guide if there is one, and the arguments that all of them are called with.

    Whatever a guide holds of the model's parameters it is given as it is run, so that these are there but once: to be
    differentiated, updated and stopped with the model's.
    """

    model: Program
    own_guide: Program  # without what it holds
    defensive_guide: Program | None
    arguments: Arguments

    @property
    def guide(self) -> Program:
        """The guide, which may hold parameters of the model."""
        return replace(self.own_guide, held=self.model.params)

    @property
    def all(self) -> tuple[Program, ...]:
        """The programs that there are."""
        programs = self.model, self.own_guide, self.defensive_guide
        return tuple(program for program in programs if program is not None)

    @property
    def params(self) -> tuple[Params | None, Params | None]:
        """Parameters of model and guide; a defensive guide has none."""
        return self.model.params, self.own_guide.params

    @property
    def rng_keys(self) -> list[jax.Array]:
        """The keys of all programs."""
        return [program.rng_key for program in self.all if program.rng_key is not None]

    def with_params(self, params: tuple[Params | None, Params | None]) -> "Programs":
        """The same programs with other parameters."""
        model, guide = (replace(p, params=q) for p, q in zip((self.model, self.own_guide), params, strict=True))
        return replace(self, model=model, own_guide=guide)

    def with_arguments(self, arguments: Arguments) -> "Programs":
        """The same programs with other arguments, those of one datum among many, say."""
        return replace(self, arguments=arguments)

    def map(self, change: Callable[[Program], Program]) -> "Programs":
        """Change every program in the same way."""
        defensive_guide = self.defensive_guide and change(self.defensive_guide)
        model, guide = change(self.model), change(self.own_guide)
        return replace(self, model=model, own_guide=guide, defensive_guide=defensive_guide)


@at_site
def _quick_clone(rng_key: Any) -> Any:
    return quick(jax.random.clone(rng_key))


def _taken(leaf: Any, path: tuple, program: ProgramFn | None) -> Any:
    """An array that JAX can trace, or a static value, in place of what is none."""
    if is_foreign(leaf):
        if not hasattr(leaf, "dtype"):
            fail_table(argument_name(path, program), leaf)
        try:
            array = np.asarray(leaf)
        except Exception as error:  # whatever the other library raises
            fail_unreadable(argument_name(path, program), leaf, first_line(error))
        return _taken(array, path, program) if not is_traceable(array) else array
    if isinstance(leaf, np.ndarray):
        fail_unreadable(argument_name(path, program), leaf, f"dtype {leaf.dtype}")
    try:
        return Static(leaf)
    except TypeError:
        fail_unhashable(argument_name(path, program), leaf)
