"""One path: what a particle computes along it, and that compiled for a number of particles.

Python branches on values, and a path says what they are, so along one the programs can be compiled. Knows functions of
particles by number, not what they compute.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.handlers import seed

from rws_jax.data import take
from rws_jax.paths import Path, Stop, Walk, fail_located, fail_unannotated
from rws_jax.programs import Call
from rws_jax.trees import is_float
from rws_jax.validation import BRANCHES


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
        # The same randomness is used in several runs: JAX is told that this is meant.
        return [call and jax.random.clone(call.program.rng_key) for call in self.calls], first.args, first.kwargs

    def bare(self) -> "Run":
        """The programs alone."""
        unseeded = lambda program: seed(program.fn, None, program.hide_types)
        bare = lambda call: call._replace(program=unseeded(call.program), params=None, args=(), kwargs={})
        return self._replace(calls=tuple(call and bare(call) for call in self.calls))

    def one(self, params: tuple, inputs: tuple, datum: Any, index: Any, walk: Walk) -> Any:
        """One particle, of scalars: where programs branch, all of a datum is one unit."""
        rng_keys, args, kwargs = inputs
        if self.data_axes is None:
            datum = None
        else:
            args = take(args, self.data_axes, datum)
        calls = [
            call
            and call._replace(
                program=seed(call.program.fn, rng_key, call.program.hide_types),
                params=values,
                args=args,
                kwargs=kwargs,
                datum=datum,
                walk=walk,
            )
            for call, values, rng_key in zip(self.calls, params, rng_keys, strict=True)
        ]
        try:
            results = self.of_calls(*calls, [index])
            walk.check_ended()
        except BRANCHES as error:
            fail_unannotated(error, list(dict.fromkeys(walk.unknown)), tuple(walk.taken))
        except Exception as error:
            fail_located(error, tuple(walk.taken))
        return jax.tree.map(jnp.sum, results)


class Compiled:
    """A path for a number of particles: draws what comes next or, at the end of the programs, scores, and back."""

    def __init__(self, run: Run, path: Path, size: int, steering: set[str], check: Callable[[Walk], Any]) -> None:
        self.path, self.size = path, size
        self.stops_at: str | None = None  # known once it is traced
        self.structure: Any = None  # of the results, likewise
        self._num_outputs = run.num_outputs
        run = run.bare()

        def one(params: tuple, inputs: tuple, datum: Any, index: Any) -> jax.Array:
            with jax.ensure_compile_time_eval():  # Python may compute with the constants of the path
                walk = Walk(path, steering)
                try:
                    results = run.one(params, inputs, datum, index, walk)
                except Stop as stop:
                    self.stops_at = stop.name
                    return stop.value
            check(walk)
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
        self, params: tuple, inputs: tuple, pairs: np.ndarray, cotangents: np.ndarray | None, grads: list
    ) -> tuple[jax.Array, list]:
        """Values at the next site, or outputs; given cotangents of the outputs, gradients with theirs added."""
        weights = np.zeros((self.size, self._num_outputs), jnp.result_type(float))  # none for those who fill it up
        if cotangents is not None:
            weights[: len(pairs)] = cotangents
        filled = np.repeat(pairs[:1], self.size, axis=0)
        filled[: len(pairs)] = pairs
        with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
            # JAX compiles for a context, and that of the way back has an empty mesh in place of none.
            return self._call(params, inputs, filled, weights, cotangents is not None, grads)


def floats_of(params: tuple) -> tuple[list, Callable[[list], tuple]]:
    """The leaves that are trained, and what puts them back among the others."""
    leaves, structure = jax.tree.flatten(params)
    trained = [is_float(leaf) for leaf in leaves]

    def of_params(floats: list) -> tuple:
        rest = iter(floats)
        whole = [next(rest) if is_trained else leaf for leaf, is_trained in zip(leaves, trained, strict=True)]
        return jax.tree.unflatten(structure, whole)

    return [leaf for leaf, is_trained in zip(leaves, trained, strict=True) if is_trained], of_params


def add(grads: list, more: list) -> list:
    """Leaf by leaf."""
    return [one + other for one, other in zip(grads, more, strict=True)]
