"""Programs that branch in Python, run by paths: all particles, of all data, that share a path run together.

One function for each prefix of a path draws up to the next branching site. What is drawn there comes to the host,
particles are grouped by it, and so on until the programs end; there the function scores. Weights need all particles of
a datum, whatever their paths. Then the function of each whole path, called again, gives its part of the gradient.

Knows particles by number, groups of them and functions of these, not what is computed.
"""

import numbers
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rws_jax.branching import SIZES, Branching
from rws_jax.data import num_data
from rws_jax.one_path import Compiled, Run, add, floats_of
from rws_jax.paths import DEFENDS, Choice, Path, Unplanned, Walk, fail_traced
from rws_jax.validation import describe, fail


class Group(NamedTuple):
    """Particles that have come along one path to its end."""

    path: Path
    members: np.ndarray  # which of the particles
    compiled: Compiled | None  # or one by one, un-jitted


class Sweep:
    """All particles of all data, forward and back."""

    def __init__(
        self, branching: Branching, run: Run, params: tuple, inputs: tuple, pairs: np.ndarray, max_size: int | None
    ) -> None:
        self._branching, self._run, self._params, self._inputs, self._pairs = branching, run, params, inputs, pairs
        self._grads = _zeros_like(floats_of(params)[0])
        self.outputs = np.zeros((len(pairs), run.num_outputs), jnp.result_type(float))
        self.structure: Any = None
        self.groups: list[Group] = []
        frontier = [((), np.arange(len(pairs)))]
        while frontier:
            frontier = list(self._beyond([part for path, all_ in frontier for part in _parts(path, all_, max_size)]))
        branching.paths |= {tuple(step for step in group.path if step.name != DEFENDS) for group in self.groups}

    def _beyond(self, frontier: list[tuple[Path, np.ndarray]]) -> Iterator[tuple[Path, np.ndarray]]:
        """One branching site further; who is at the end is done."""
        calls = []
        for path, members in frontier:  # all are on their way before the first one is waited for
            compiled = self._branching.find(self._run, path, len(members))
            if compiled is None:
                self._go_alone(path, members)
                continue
            values, _ = compiled(self._params, self._inputs, self._pairs[members], None, self._grads)
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
            self._branching.check_supports(walk)
            self._finish(Group(tuple(walk.taken), np.array([member]), None), np.array([outputs]), structure)

    def _alone(self, params: tuple, member: int, walk: Walk) -> Any:
        self._branching.num_unjitted += 1
        datum, index = self._pairs[member].tolist()
        return self._run.bare().one(params, self._inputs, datum, index, walk)

    def _finish(self, group: Group, outputs: np.ndarray, structure: Any) -> None:
        self.outputs[group.members] = outputs
        self.structure = structure
        self.groups.append(group)

    def back(self, cotangents: np.ndarray) -> list:
        """Gradients of all parameters that are floats, given those of `outputs`."""
        grads = self._grads
        for group in self.groups:
            weights = cotangents[group.members]
            if group.compiled is None:
                grads = add(grads, self._back_alone(group, weights[0]))
            else:
                _, grads = group.compiled(self._params, self._inputs, self._pairs[group.members], weights, grads)
        return grads

    def _back_alone(self, group: Group, weights: np.ndarray) -> list:
        floats, of_params = floats_of(self._params)
        walk = Walk(group.path, self._branching.steering)
        of_floats = lambda floats: jax.tree.leaves(self._alone(of_params(floats), group.members[0], walk))
        _, pullback = jax.vjp(of_floats, floats)
        return pullback(list(jnp.asarray(weights)))[0]


def by_paths(branching: Branching, run: Run, num_particles: int, max_size: int | None = None) -> Any:
    """The results of all particles, leaves ``(particles, *data)``, differentiable in the parameters of the calls.

    Args:
      branching: what is known of these programs.
      run: what to compute.
      num_particles: for each datum.
      max_size: particles that run at a time.
    """
    (floats, of_params), inputs = floats_of(run.params), run.inputs
    _check_known(inputs)
    _check_arrays(inputs[1:])
    avals = [jax.typeof(leaf) for leaf in jax.tree.leaves((run.params, inputs))]
    run = run._replace(kind=(run.kind, jax.tree.structure((run.params, inputs)), *avals))  # compiled for these
    numbers = (num_particles,) if run.data_axes is None else (num_particles, num_data(inputs[1], run.data_axes))
    pairs = np.argwhere(np.ones((*numbers, 1)[:2]))[:, ::-1]  # datum and index
    structures = []

    def sweep(floats: list) -> tuple[tuple, Sweep]:
        _check_known(floats)
        params = of_params([leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in floats])
        while True:
            try:
                done = Sweep(branching, run, params, inputs, pairs.astype(np.int32), max_size)
            except Unplanned as site:
                branching.learn(site.name)
                continue
            structures.append(done.structure)
            return tuple(jnp.asarray(column.reshape(numbers)) for column in done.outputs.T), done

    @jax.custom_vjp
    def outputs_of(floats: list) -> tuple:
        return sweep(floats)[0]

    def forward(floats: list) -> tuple:
        outputs, done = sweep(floats)
        return outputs, _Held(done)

    def backward(held: _Held, cotangents: tuple) -> tuple:
        _check_known(cotangents)
        return (held.sweep.back(np.stack([np.ravel(column) for column in cotangents], axis=-1)),)

    outputs_of.defvjp(forward, backward)
    outputs = outputs_of(floats)
    return jax.tree.unflatten(structures[0], outputs)


@jax.tree_util.register_static
class _Held:
    """For the way back, past JAX."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep


def _parts(path: Path, members: np.ndarray, max_size: int | None) -> list[tuple[Path, np.ndarray]]:
    """No more at a time than `max_size`, as they are padded."""
    size = len(members) if max_size is None else max((s for s in SIZES if s <= max_size), default=SIZES[0])
    return [(path, members[start : start + size]) for start in range(0, len(members), size)]


@partial(jax.jit, keep_unused=True)  # on the devices of the parameters
def _zeros_like(floats: list) -> list:
    return [jnp.zeros_like(leaf) for leaf in floats]


def _check_arrays(arguments: tuple) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | numbers.Number):
            fail(
                TypeError,
                f"programs have branching sites, and argument {jax.tree_util.keystr(path)} is no array",
                expected="arrays and numbers, as paths are compiled",
                found=describe(leaf),
                hint="bind static arguments by functools.partial(model, ...)",
            )


def _check_known(tree: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        fail_traced("traced parameters, keys or arguments")
