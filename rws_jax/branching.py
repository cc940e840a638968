"""Programs that branch in Python, compiled path by path: all particles, of all data, that share a path run together.

One function for each prefix of a path draws up to the next branching site. What is drawn there comes to the host,
particles are grouped by it, and so on until the programs end; there the function scores. Weights need all particles of a
datum, whatever their paths. Then the function of each whole path, called once more, gives its part of the gradient.

Knows particles by number, groups of them and functions of these, not what is computed.
"""

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from numpyro.handlers import seed

from rws_jax.data import num_data, take
from rws_jax.paths import Choice, Path, Stop, Unplanned, Walk
from rws_jax.programs import Call
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
            floats, of_params = _floats(params)
            of_floats = lambda floats: all_of(of_params(floats), inputs, *pairs.T)
            shape = jax.eval_shape(of_floats, floats)
            if self.stops_at is not None:
                return of_floats(floats), grads

            def backward() -> tuple:
                _, pullback = jax.vjp(of_floats, floats)
                return jnp.zeros(shape.shape, shape.dtype), _add(grads, *pullback(cotangents))

            return lax.cond(weighs, backward, lambda: (of_floats(floats), grads))

        self._call = jax.jit(function)

    def __call__(
        self, run: Run, params: tuple, pairs: np.ndarray, cotangents: np.ndarray | None, grads: list
    ) -> tuple[jax.Array, list]:
        """Values at the next site, or outputs; given cotangents of the outputs, gradients with theirs added."""
        num_missing = self.size - len(pairs)
        weighs = cotangents is not None
        cotangents = np.zeros((len(pairs), run.num_outputs), np.float32) if cotangents is None else cotangents
        pairs = np.pad(pairs, ((0, num_missing), (0, 0)), mode="edge")
        cotangents = np.pad(cotangents, ((0, num_missing), (0, 0)))
        return self._call(params, run.inputs, pairs, cotangents, weighs, grads)


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


class Group(NamedTuple):
    """Particles that have come along one path to its end."""

    path: Path
    members: np.ndarray  # which of the particles
    compiled: Compiled | None  # or one by one, un-jitted


class Sweep:
    """All particles of all data, forward and back."""

    def __init__(self, branching: Branching, run: Run, params: tuple, pairs: np.ndarray, max_size: int | None) -> None:
        self._branching, self._run, self._params, self._pairs = branching, run, params, pairs
        self._grads = [jnp.zeros_like(leaf) for leaf in _floats(params)[0]]
        self.outputs = np.zeros((len(pairs), run.num_outputs), np.float32)
        self.structure: Any = None
        self.groups: list[Group] = []
        frontier = [((), np.arange(len(pairs)))]
        while frontier:
            frontier = list(self._beyond([part for path, all_ in frontier for part in _parts(path, all_, max_size)]))
        branching.paths |= {(run.kind, group.path) for group in self.groups}

    def _beyond(self, frontier: list[tuple[Path, np.ndarray]]) -> Iterator[tuple[Path, np.ndarray]]:
        """One branching site further; who is at the end is done."""
        calls = []
        for path, members in frontier:  # all are on their way before the first one is waited for
            compiled = self._branching.find(self._run, path, len(members))
            if compiled is None:
                self._go_alone(path, members)
                continue
            values, _ = compiled(self._run, self._params, self._pairs[members], None, self._grads)
            self._branching.keep(self._run, compiled)
            calls.append((path, members, compiled, values))
        for path, members, compiled, values in calls:
            values = np.asarray(values)[: len(members)]
            if compiled.stops_at is None:
                self._finish(Group(path, members, compiled), values, compiled.structure)
                continue
            different, which = np.unique(values, axis=0, return_inverse=True)
            self._branching.warn_of_values(path, compiled.stops_at, len(different), len(members))
            for number, value in enumerate(different):
                yield (*path, Choice.of(compiled.stops_at, value)), members[which.ravel() == number]

    def _go_alone(self, path: Path, members: np.ndarray) -> None:
        for member in members:
            walk = Walk(path, self._branching.steering, goes_on=True)
            outputs, structure = jax.tree.flatten(self._alone(self._params, member, walk))
            self._finish(Group(tuple(walk.taken), np.array([member]), None), np.array([outputs]), structure)

    def _alone(self, params: tuple, member: int, walk: Walk) -> Any:
        self._branching.num_unjitted += 1
        return self._run.bare().one(params, self._run.inputs, *map(int, self._pairs[member]), walk)

    def _finish(self, group: Group, outputs: np.ndarray, structure: Any) -> None:
        self.outputs[group.members] = outputs
        self.structure = structure
        self.groups.append(group)

    def back(self, cotangents: np.ndarray) -> list:
        """Gradients of all parameters that are floats, given those of `outputs`."""
        grads = self._grads
        for group in self.groups:
            weights = cotangents[group.members]
            if group.compiled is not None:
                _, grads = group.compiled(self._run, self._params, self._pairs[group.members], weights, grads)
                continue
            floats, of_params = _floats(self._params)
            walk = Walk(group.path, self._branching.steering)
            of_floats = lambda floats: jax.tree.leaves(self._alone(of_params(floats), group.members[0], walk))  # noqa: B023
            grads = _add(grads, *jax.vjp(of_floats, floats)[1](list(jnp.asarray(weights[0]))))
        return grads


def by_paths(branching: Branching, run: Run, num_particles: int, max_size: int | None = None) -> Any:
    """The results of all particles, leaves ``(particles, *data)``, differentiable in the parameters of the calls.

    Args:
      branching: what is known of these programs.
      run: what to compute.
      num_particles: for each datum.
      max_size: particles that run at a time.
    """
    floats, of_params = _floats(run.params)
    _check_known((lax.stop_gradient(floats), run.inputs))
    numbers = (num_particles,) if run.data_axes is None else (num_particles, num_data(run.inputs[1], run.data_axes))
    pairs = np.argwhere(np.ones((*numbers, 1)[:2]))[:, ::-1]  # datum and index
    structures = []

    def sweep(floats: list) -> tuple[jax.Array, Sweep]:
        while True:
            try:
                done = Sweep(branching, run, of_params(floats), pairs.astype(np.int32), max_size)
            except Unplanned as site:
                branching.learn(site.name)
                continue
            structures.append(done.structure)
            return jnp.asarray(done.outputs), done

    @jax.custom_vjp
    def outputs_of(floats: list) -> jax.Array:
        return sweep(floats)[0]

    def forward(floats: list) -> tuple:
        outputs, done = sweep(floats)
        return outputs, _Held(done)

    outputs_of.defvjp(forward, lambda held, cotangents: (held.sweep.back(np.asarray(cotangents)),))
    outputs = outputs_of(floats)
    leaves = [outputs[:, number].reshape(numbers) for number in range(run.num_outputs)]
    return jax.tree.unflatten(structures[0], leaves)


@jax.tree_util.register_static
class _Held:
    """For the way back, past JAX."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep


def _floats(params: tuple) -> tuple[list, Callable[[list], tuple]]:
    """The leaves that are trained, and what puts them back among the others."""
    leaves, structure = jax.tree.flatten(params)
    trained = [is_float(leaf) for leaf in leaves]

    def of_params(floats: list) -> tuple:
        rest = iter(floats)
        whole = [next(rest) if is_trained else leaf for leaf, is_trained in zip(leaves, trained, strict=True)]
        return jax.tree.unflatten(structure, whole)

    return [jnp.asarray(leaf) for leaf, is_trained in zip(leaves, trained, strict=True) if is_trained], of_params


def _add(grads: list, more: list) -> list:
    return [one + other for one, other in zip(grads, more, strict=True)]


def _parts(path: Path, members: np.ndarray, max_size: int | None) -> list[tuple[Path, np.ndarray]]:
    size = max_size or len(members)
    return [(path, members[start : start + size]) for start in range(0, len(members), size)]


def _padded(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def _check_known(tree: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        fail(
            TypeError,
            "programs have branching sites, but the call is traced by jit, scan or vmap",
            expected="a call outside of JAX transformations other than grad: it compiles each path by itself",
            found="traced parameters, keys or arguments",
            hint="call it un-jitted, in a Python loop; to compile all at once, branch by"
            " numpyro.contrib.control_flow.cond or handlers.mask instead",
        )
