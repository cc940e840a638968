"""Programs that branch in Python, run by paths: all particles, of all data, that share a branching trace run together.

Each trace is compiled by itself, or run un-jitted while few particles have come along it. The first rounds of a loop
without bound are compiled together, and particles that take more of them go on along their traces. Weights need all
particles of a datum, whatever their traces, so results come first, and gradients once it is known what they are
weighted with.
"""

from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.checks.arguments import is_rbg
from rws_jax.core.errors import fail
from rws_jax.core.layers import ProgramFn
from rws_jax.core.trees import is_traced, split_floats
from rws_jax.execution.branching.errors import UnannotatedError, fail_traced
from rws_jax.execution.branching.grouped_run import GroupedRun
from rws_jax.execution.branching.handler import BranchHandler, Latents, UnannotatedBranch
from rws_jax.execution.branching.particle import run_along
from rws_jax.execution.branching.path_cache import Kind, PathCache
from rws_jax.execution.data import ALL_DATA, Data
from rws_jax.execution.executor import Executor, ParticleFn
from rws_jax.execution.ragged import Ragged
from rws_jax.programs.program import Programs

T = TypeVar("T")


class ByPaths(Executor):
    """Particles grouped by their branching traces, at most `max_size` at a time.

    What a particle computes has to be a tree of floating point scalars, once all of its units are one, and of ragged
    nodes, through which no gradient passes.
    """

    def __init__(self, data: Data = ALL_DATA, max_size: int | None = None, cache: PathCache | None = None) -> None:
        self.data, self.max_size = data, max_size
        self.cache = cache  # None: that of whichever programs are run

    @property
    def ragged(self) -> bool:
        """Python branches on what is drawn."""
        return True

    @property
    def in_python(self) -> bool:
        """Python has to know what is drawn."""
        return True

    def __call__(self, particle: ParticleFn[T], programs: Programs, num: int) -> T:
        """Run all particles, along all traces; differentiable once."""
        floats, with_floats = split_floats(programs.params)
        inputs = programs.with_params((None, None))
        _check_known(inputs)
        _check_seeded(programs)
        _check_keys(programs)
        cache = self.cache or _cache_of(particle, *(program.fn for program in programs.all))
        avals = tuple(jax.typeof(leaf) for leaf in jax.tree.leaves(programs))
        config: Any = jax.config
        kind = Kind(particle, self.data, (jax.tree.structure(programs), config.jax_enable_x64), avals)
        num_data = self.data.count(programs)
        shape = (num,) if num_data is None else (num, num_data)
        pairs = np.argwhere(np.ones((*shape, 1)[:2]))[:, ::-1].astype(np.int32)  # datum and number of each particle
        layouts = []

        def run(floats: list[jax.Array], has_way_back: bool) -> tuple[_Results, GroupedRun]:
            _check_known(floats)
            arrays = [leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in floats]
            while True:
                try:
                    own = inputs.with_params(with_floats(arrays))
                    grouped = GroupedRun(cache, kind, own, pairs, self.max_size, has_way_back=has_way_back)
                    break
                except UnannotatedBranch as site:
                    cache.add_branching(site.name)
                except UnannotatedError as error:
                    names = self._branching(particle, inputs.with_params(with_floats(arrays))) & set(error.names)
                    if names <= cache.also_branching:
                        raise TypeError(str(error)) from error.__cause__
                    cache.add_branching(*names)
            layouts.append(grouped.layout)
            in_place = lambda leaf: jnp.asarray(leaf.reshape(*shape, *leaf.shape[1:]))
            return _Results(
                [in_place(column) for column in grouped.results.T], jax.tree.map(in_place, grouped.ragged)
            ), grouped

        @jax.custom_vjp
        def results_of(floats: list[jax.Array]) -> _Results:
            return run(floats, False)[0]

        def forward(floats: list[jax.Array]) -> tuple[_Results, _Held]:
            results, grouped = run(floats, True)
            return results, _Held(grouped)

        def backward(held: _Held, cotangents: _Results) -> tuple[list[jax.Array]]:
            _check_known(cotangents.numbers)
            return (held.grouped.gradients(np.stack([np.ravel(column) for column in cotangents.numbers], axis=-1)),)

        results_of.defvjp(forward, backward)
        results = results_of(floats)
        return layouts[0].filled(*results)

    def _branching(self, particle: ParticleFn, programs: Programs) -> set[str]:
        """The sites of one particle that are annotated in any of the programs."""
        latents, handler = Latents(), BranchHandler((), set(), goes_on=True)
        with latents:
            run_along(handler, particle, programs, self.data, 0, 0)
        return latents.branching

    def begin(self) -> None:
        """Begin to count paths and un-jitted runs anew."""
        if self.cache is not None:
            self.cache.begin()

    def metrics(self) -> dict[str, jax.Array]:
        """Counts of paths, of compiled functions and of un-jitted runs."""
        return {} if self.cache is None else self.cache.metrics()


class _Results(NamedTuple):
    """What all particles compute."""

    numbers: list[jax.Array]
    ragged: list[Ragged]


@jax.tree_util.register_static
class _Held:
    """A grouped run as a residual of the forward pass, which JAX takes for a constant."""

    def __init__(self, grouped: GroupedRun) -> None:
        self.grouped = grouped


@lru_cache(maxsize=16)
def _cache_of(particle: ParticleFn, *fns: ProgramFn) -> PathCache:
    """The cache of a loss that is called again with the same programs; `make_step` has its own."""
    return PathCache()


def _check_seeded(programs: Programs) -> None:
    for program in programs.all:
        if program.is_seeded:
            fail(
                ValueError,
                f"the {program.role} has branching sites, and handlers around numpyro.handlers.seed",
                expected="programs seeded outermost, seed(handler(program), rng_key)",
                found=f"{type(program.fn).__name__} outermost",
                hint="paths are compiled for all keys; swap the handlers, or pass vectorize_particles=False",
            )


def _check_keys(programs: Programs) -> None:
    """A particle draws again in each group that it is in, and has to draw the same."""
    if any(map(is_rbg, programs.rng_keys)):
        fail(
            ValueError,
            "programs have branching sites, and keys are of the kind 'rbg'",
            expected="keys whose draws do not depend on what is mapped over with them",
            found="keys of the kind 'rbg', of which JAX draws whole groups from the first one",
            hint="jax.random.key(0, impl='threefry2x32'), JAX's default",
        )


def _check_known(tree: Any) -> None:
    if is_traced(tree):
        fail_traced("traced parameters, keys or arguments")
