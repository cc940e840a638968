"""One dream and what the guide makes of it, as a function of the arguments: what moves with which of them.

Either by dependence, from a trace, or by values, from more runs.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rws_jax.core.dependence import dependence
from rws_jax.core.numpyro_internals import comes_out_of_control_flow
from rws_jax.core.sites import Trace, latent_sites
from rws_jax.core.supports import mask_of_values
from rws_jax.core.trees import is_traced
from rws_jax.programs.density import log_density
from rws_jax.programs.holders import holders_of, is_number, only_source
from rws_jax.programs.program import Arguments, Index, Program, Programs
from rws_jax.programs.stand_in import stand_in


class Dreamer(Protocol):
    """What dreams, and shows its dreams to the guide."""

    @property
    def rewrite(self) -> Any:
        """How, if the caller says it."""
        ...

    def dream(self, programs: Programs, index: Index) -> tuple[Trace, Any]:
        """Simulate the model."""
        ...

    def run(self, programs: Programs, index: Index, dream: Any, model_run: Trace | None) -> tuple[Trace, Arguments]:
        """Run the guide on a dream."""
        ...


# What programs raise whose Python has to know values.
UNTRACEABLE = TypeError, jax.errors.NonConcreteBooleanIndexError


class Moved(NamedTuple):
    """Whether something moves with real data."""

    dream: bool
    density: bool


class Outcome(NamedTuple):
    """What a trial computes."""

    dream: Any  # latents and data
    density: Any  # of the guide's sites
    masks: dict[str, Any]  # of observed sites
    observed: dict[str, Any]  # what these observe in reality


@dataclass(frozen=True)
class Trial:
    """One dream, to be run with various arguments."""

    dreamer: Dreamer
    programs: Programs
    index: Index

    @property
    def numbers(self) -> list[Any]:
        """All numbers among the arguments."""
        return [leaf for leaf in jax.tree.leaves(tuple(self.programs.arguments)) if is_number(leaf)]

    def run(self, particle: Any, numbers: Sequence[Any]) -> tuple[Outcome, dict[str, list[int]], Trace]:
        """Run with other numbers in the arguments; also return which of them hold data, and the model's trace."""
        leaves, structure = jax.tree.flatten(tuple(self.programs.arguments))
        given, positions = iter(numbers), count()
        arguments = structure.unflatten([next(given) if is_number(leaf) else leaf for leaf in leaves])
        named = structure.unflatten([next(positions) if is_number(leaf) else None for leaf in leaves])
        programs, index = self.programs.with_arguments(Arguments(*arguments)), self.index._replace(particle=particle)
        model_run, dream = self.dreamer.dream(programs, index)
        guide_run, _ = self.dreamer.run(programs, index, dream, model_run)
        sites = {name: model_run[name] for name in dream.data}
        outcome = Outcome(
            (dream.draws.latents, dream.data),
            density_of(guide_run),
            {name: mask_of_values(site["fn"]) for name, site in sites.items()},
            {name: site["real"] for name, site in sites.items() if not comes_out_of_control_flow(site)},
        )
        return outcome, holders_of(programs.model, named, numbers, sites), model_run

    def traced(self) -> "Traced | None":
        """What depends on what; None where Python has to know the numbers."""
        holders: dict[str, list[int]] = {}

        def run(particle: Any, numbers: list[Any]) -> Outcome:
            outcome, found, _ = self.run(particle, numbers)
            holders.update(found)
            return outcome

        try:
            jaxpr, outcome = jax.make_jaxpr(run, return_shape=True)(jnp.asarray(self.index.particle), self.numbers)
        except UNTRACEABLE:
            return None
        inputs: Outcome = jax.tree.structure(outcome).unflatten(dependence(jaxpr))
        for name in inputs.dream[1].keys() - holders.keys():
            shape = outcome.dream[1][name].shape
            holders[name] = only_source(inputs.observed.get(name) or set(), self.numbers, shape)
        return Traced(inputs, holders)

    def known(self) -> "Known | None":
        """What comes out, if the arguments are known; keys and parameters that are not are replaced by others."""
        if is_traced((self.programs.arguments, self.index)):
            return None
        if any(program.is_seeded and is_traced(program.rng_key) for program in self.programs.all):
            return None

        def as_known(program: Program) -> Program:
            program = replace(program, rng_key=jax.random.key(0)) if is_traced(program.rng_key) else program
            return replace(program, params=None) if is_traced(program.params) else program

        is_compiled = isinstance(jnp.zeros(()), Tracer)  # constants are, too, where all is
        with jax.ensure_compile_time_eval() if is_compiled else nullcontext():
            known = replace(self, programs=self.programs.map(as_known))
        return Known(known, is_compiled, at_start=is_traced(self.programs.params))


@dataclass(frozen=True)
class Traced:
    """What a trial computes, by dependence."""

    inputs: Outcome  # which dream it is, 0, and the numbers in the arguments, from 1, that each part depends on
    holders: dict[str, list[int]]  # which numbers hold the data of each site

    def masks_of_dreams(self) -> list[str]:
        """The sites whose mask depends on what is dreamt."""
        return [name for name, mask in self.inputs.masks.items() if _any_depends(mask, [0])]

    def sites_of_latents(self) -> list[str]:
        """The sites that observe what is dreamt."""
        return [name for name, value in self.inputs.observed.items() if _any_depends(value, [0])]

    def moved_by_data(self, holders: list[int]) -> Moved:
        """What depends on the real data of a site."""
        inputs = [1 + holder for holder in holders]
        return Moved(_any_depends(self.inputs.dream, inputs), _any_depends(self.inputs.density, inputs))


@dataclass(frozen=True)
class Known:
    """The same, by running it again with other values."""

    trial: Trial
    is_compiled: bool  # whether it has to be kept out of a function that is compiled
    at_start: bool  # whether at initial parameters, as others are not known

    @cached_property
    def _base(self) -> tuple[Outcome, dict[str, list[int]], Trace]:
        return self._run(0)

    @property
    def holders(self) -> dict[str, list[int]]:
        """Which numbers hold the data of each site."""
        return self._base[1]

    def masks_of_dreams(self) -> list[str]:
        """The sites whose mask is another in the next dream."""
        return _other_sites(self._base[0].masks, self._run(1)[0].masks)

    def sites_of_latents(self) -> list[str]:
        """The sites that observe another value in the next dream."""
        return _other_sites(self._base[0].observed, self._run(1)[0].observed)

    def moved_by_data(self, name: str, holders: list[int], tries: int) -> Moved | None:
        """What comes out differently with dreamt data in place of a site's real ones, those of so many dreams.

        None if no dream differs from the data, or programs do not run.
        """
        try:
            with self._context():
                return self._moved_by_data(name, holders, tries)
        except Exception:
            if self.is_compiled or self.at_start:  # not everything can be kept out, and there may be no start
                return None
            raise

    def _moved_by_data(self, name: str, holders: list[int], tries: int) -> Moved | None:
        (base, _, model_run), moved = self._base, None
        for number in range(tries):
            dreamt = base if number == 0 else self._run(number)[0]
            if name not in dreamt.dream[1]:  # sites may be others, as Python branches
                continue
            other = lambda real, data=dreamt.dream[1][name]: _other(real, data, model_run[name])
            numbers = [other(real) if i in holders else real for i, real in enumerate(self.trial.numbers)]
            if _equal(numbers, self.trial.numbers):
                continue
            again = self._run(0, numbers)[0]
            moved = Moved(not _equal(base.dream, again.dream), not _equal(base.density, again.density))
            if any(moved):
                break
        return moved

    def _run(self, number: int, numbers: Sequence[Any] | None = None) -> tuple[Outcome, dict[str, list[int]], Trace]:
        """Run another dream, or one of other numbers."""
        with self._context():
            particle = self.trial.index.particle + number
            return self.trial.run(particle, self.trial.numbers if numbers is None else numbers)

    def _context(self) -> AbstractContextManager:
        return jax.ensure_compile_time_eval() if self.is_compiled else nullcontext()


def _other_sites(base: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name for name in base.keys() & other.keys() if not _equal(base[name], other[name])]


def _any_depends(tree: Any, inputs: list[int]) -> bool:
    return any(not found.isdisjoint(inputs) for found in jax.tree.leaves(tree))


def density_of(guide_run: Trace) -> dict[str, Any]:
    """Log densities of the guide's sites."""
    return {name: log_density(site["fn"], site["value"], None) for name, site in latent_sites(guide_run).items()}


def _other(real: Any, dreamt: jax.Array, site: Any) -> Any:
    """Dreamt data in place of real ones; where they are a minibatch, the real ones in another order."""
    if jnp.shape(real) == jnp.shape(dreamt):
        return stand_in(site, dreamt, real)
    return jnp.flip(real) if jnp.ndim(real) else real


def _equal(tree: Any, other: Any) -> bool:
    same = lambda a, b: a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))
    as_numpy = lambda tree: jax.tree.map(np.asarray, tree)
    alike = jax.tree.structure(tree) == jax.tree.structure(other)
    return alike and jax.tree.all(jax.tree.map(same, as_numpy(tree), as_numpy(other)))
