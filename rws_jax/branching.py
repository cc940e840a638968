"""One path, compiled for a number of particles, and what is kept of all that have been compiled.

Python branches on values, and a path says what they are, so along one the programs can be compiled. Knows functions of
particles by number, not what they compute.
"""

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.handlers import seed

from rws_jax.data import take
from rws_jax.paths import Path, Stop, Walk, check_steering, steers
from rws_jax.programs import Call
from rws_jax.sites import Trace
from rws_jax.trees import is_float
from rws_jax.validation import fail


class Run(NamedTuple):
    """What every particle of every datum computes: ``of_calls(*calls, indices) -> tree``, its leaves ``(1, ...)``."""

    kind: Any  # hashable; equal for runs that compute the same
    of_calls: Callable
    num_outputs: int  # leaves of the tree
    calls: tuple[Call | None, ...]  # seeded outermost
    data_axes: Any

    @property
    def params(self) -> tuple:
        """By program."""
        return tuple(call and call.params for call in self.calls)

    @property
    def inputs(self) -> tuple:
        """All else that it depends on: keys and arguments."""
        first = next(call for call in self.calls if call is not None)
        return [call and call.program.rng_key for call in self.calls], first.args, first.kwargs

    def bare(self) -> "Run":
        """The programs alone."""
        bare = lambda call: call._replace(program=call.program.fn, params=None, args=(), kwargs={})
        return self._replace(calls=tuple(call and bare(call) for call in self.calls))

    def one(self, params: tuple, inputs: tuple, datum: Any, index: Any, walk: Walk) -> Any:
        """One particle, of scalars: where programs branch, all of a datum is one unit."""
        rng_keys, args, kwargs = inputs
        if self.data_axes is None:
            datum = None
        else:
            args = take(args, self.data_axes, datum)
        calls = [
            call and Call(seed(call.program, rng_key), call.role, values, args, kwargs, datum, walk)
            for call, values, rng_key in zip(self.calls, params, rng_keys, strict=True)
        ]
        results = self.of_calls(*calls, [index])
        walk.check_ended()
        return jax.tree.map(jnp.sum, results)


class Compiled:
    """A path for a number of particles: draws what comes next or, at the end of the programs, scores, and back."""

    def __init__(self, run: Run, path: Path, size: int, steering: set[str]) -> None:
        self.path, self.size = path, size
        self.stops_at: str | None = None  # known once it is traced
        self.structure: Any = None  # of the results, likewise
        run = run.bare()

        def one(params: tuple, inputs: tuple, datum: Any, index: Any) -> jax.Array:
            with jax.ensure_compile_time_eval():  # Python may compute with the constants of the path
                try:
                    results = run.one(params, inputs, datum, index, Walk(path, steering))
                except Stop as stop:
                    self.stops_at = stop.name
                    return stop.value
            outputs, self.structure = jax.tree.flatten(results)
            return jnp.stack(outputs)

        all_of = jax.jit(jax.vmap(one, (None, None, 0, 0)))  # jitted, to be traced once

        def function(
            params: tuple, inputs: tuple, pairs: jax.Array, cotangents: jax.Array, weighs: jax.Array, grads: list
        ) -> tuple:
            floats, of_params = floats_of(params)
            of_floats = lambda floats: all_of(of_params(floats), inputs, *pairs.T)
            shape = jax.eval_shape(of_floats, floats)
            if self.stops_at is not None:
                return of_floats(floats), grads

            def backward() -> tuple:
                _, pullback = jax.vjp(of_floats, floats)
                return jnp.zeros(shape.shape, shape.dtype), add(grads, *pullback(cotangents.astype(shape.dtype)))

            return lax.cond(weighs, backward, lambda: (of_floats(floats), grads))

        self._call = jax.jit(function)

    def __call__(
        self, run: Run, params: tuple, pairs: np.ndarray, cotangents: np.ndarray | None, grads: list
    ) -> tuple[jax.Array, list]:
        """Values at the next site, or outputs; given cotangents of the outputs, gradients with theirs added."""
        weights = np.zeros((self.size, run.num_outputs), jnp.result_type(float))  # none for those who fill it up
        if cotangents is not None:
            weights[: len(pairs)] = cotangents
        filled = np.repeat(pairs[:1], self.size, axis=0)
        filled[: len(pairs)] = pairs
        return self._call(params, run.inputs, filled, weights, cotangents is not None, grads)


class Branching:
    """What has been compiled of some programs, and which of their sites steer."""

    def __init__(self, compile_after: int = 32, max_compiled: int = 1000) -> None:
        self.compile_after, self.max_compiled = compile_after, max_compiled
        self.is_met = False  # whether there are branching sites
        self.steering: set[str] = set()  # beside those that are annotated in the program that draws them
        self._compiled: OrderedDict[tuple, Compiled] = OrderedDict()  # by kind of run, path and size
        self._num_seen: Counter[tuple] = Counter()  # particles on a path, until it is compiled
        self._told: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """Count anew."""
        self.paths: set[tuple] = set()
        self.num_unjitted = 0

    def counts(self) -> dict[str, jax.Array]:
        """What the info tells."""
        counts = {"num_paths": len(self.paths), "num_compiled": len(self._compiled), "num_unjitted": self.num_unjitted}
        return {name: jnp.array(count) for name, count in counts.items()}

    def look(self, *runs: Trace) -> None:
        """Whether there are branching sites in these runs of model and guide."""
        for role, run in zip(("model", "guide"), runs, strict=True):
            for site in run.values():
                if steers(site, None):
                    check_steering(role, site)
                    self.is_met = True

    def find(self, run: Run, path: Path, number: int) -> Compiled | None:
        """For at least so many particles on a path; None if too few have come along it to compile it."""
        sizes = [size for kind, known, size in self._compiled if (kind, known) == (run.kind, path)]
        fitting = [size for size in sizes if number <= size <= _MAX_PADDING * number]
        if fitting:
            key = run.kind, path, min(fitting)
            self._compiled.move_to_end(key)
            return self._compiled[key]
        self._num_seen[run.kind, path] += number
        if not sizes and self._num_seen[run.kind, path] <= self.compile_after:
            return None
        return Compiled(run, path, _padded(number), self.steering)

    def keep(self, run: Run, compiled: Compiled) -> None:
        """Once it has been called: an interruption while it is compiled leaves all as it was."""
        self._compiled[run.kind, compiled.path, compiled.size] = compiled
        while len(self._compiled) > self.max_compiled:
            self._compiled.popitem(last=False)

    def learn(self, name: str) -> None:
        """A site steers in the program that scores it; what draws it has to stop there."""
        self.steering.add(name)
        self._compiled.clear()

    def warn_of_values(self, path: Path, name: str, num_values: int, number: int) -> None:
        """A continuous site, say, has as many paths as particles."""
        if num_values == number >= _MANY and name not in self._told:
            self._told.add(name)
            warnings.warn(
                f"branching site {name!r} has drawn {number} different values for {number} particles, so that every"
                " particle is a path of its own, and compiled for itself: branch on a discrete site",
                stacklevel=2,
            )


_MAX_PADDING = 16  # times as many particles as there are
_MANY = 50


def branching_of(calls: tuple[Call | None, ...], options: Any) -> Branching:
    """What is known from last time, or nothing yet."""
    for call in calls:
        if call is not None and not isinstance(call.program, seed):
            fail(
                ValueError,
                f"the {call.role} has branching sites, and handlers around numpyro.handlers.seed",
                expected="programs seeded outermost, seed(handler(program), rng_key)",
                found=f"{type(call.program).__name__} outermost",
                hint="paths are compiled for all keys; swap the handlers, or pass vectorize_particles=False",
            )
    branching = options.layout.branching
    if branching is None:
        try:
            branching = _known(tuple(call and call.program.fn for call in calls), options)
        except TypeError:  # what cannot be hashed is compiled each time
            branching = Branching()
    branching.is_met = True
    return branching


@lru_cache(maxsize=16)
def _known(programs: tuple, options: Any) -> Branching:
    return Branching()


def check_by_paths(options: Any) -> None:
    """What goes with branching sites."""
    expected = None
    if getattr(options, "gradient", "score") == "dreg":
        expected, found = "gradient='score': a branch has no derivative", "gradient='dreg'"
    elif options.layout.particle_sharding is not None:
        expected, found = "particle_sharding=None: each path runs on one device", "a sharding of particles"
    if expected is not None:
        fail(
            ValueError,
            "programs have branching sites, and an option does not go with these",
            expected=expected,
            found=found,
            hint="leave the option out, or branch by numpyro.contrib.control_flow.cond or handlers.mask instead",
        )


def floats_of(params: tuple) -> tuple[list, Callable[[list], tuple]]:
    """The leaves that are trained, and what puts them back among the others."""
    leaves, structure = jax.tree.flatten(params)
    trained = [is_float(leaf) for leaf in leaves]

    def of_params(floats: list) -> tuple:
        rest = iter(floats)
        whole = [next(rest) if is_trained else leaf for leaf, is_trained in zip(leaves, trained, strict=True)]
        return jax.tree.unflatten(structure, whole)

    return [jnp.asarray(leaf) for leaf, is_trained in zip(leaves, trained, strict=True) if is_trained], of_params


def add(grads: list, more: list) -> list:
    """Leaf by leaf."""
    return [one + other for one, other in zip(grads, more, strict=True)]


def _padded(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
