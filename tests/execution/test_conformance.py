"""Every way of running particles gives what the plain vectorised one gives, for every model class and every estimator.

Estimators are functions of what a particle computes, so an executor runs each kind of particle once, and its pullback
is applied to the cotangents of all estimators: values and gradients of the losses themselves, in one compilation.
"""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rws_jax.estimators.sleep import DreamParticle
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.branching.path_cache import PathCache
from rws_jax.execution.by_paths import ByPaths
from rws_jax.execution.chunked import Chunked
from rws_jax.execution.data import Data
from rws_jax.execution.data_chunks import DataChunks
from rws_jax.execution.executor import Executor
from rws_jax.execution.one_by_one import OneByOne
from rws_jax.execution.vectorized import Vectorized
from tests import models
from tests.estimates import ESTIMATORS, values_and_gradients
from tests.oracles import programs_of

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
PARAMS = models.BY_HAND_THETA, models.BY_HAND_PHI
REPARAMETERISED = {"one latent", "two latents", "transformed", "hierarchical", "nested plates", "sequential plates"}
REPARAMETERISED |= {"subsampled", "scan", "reversed scan"}

ALL_AT_ONCE = [kind for kind in ESTIMATORS if not getattr(kind, "delta", 0.0)]


def over_devices(num):
    """A vectorised executor over so many devices."""
    return Vectorized(particle_sharding=NamedSharding(jax.make_mesh((num,), ("p",)), PartitionSpec("p")))


EXECUTORS = {"chunked": lambda: Chunked(Vectorized(), 1), "one by one": OneByOne}


def kinds_of(name, executor=None):
    """Kinds of particles that apply: where they run alone, a defensive choice is of a particle, not of each unit."""
    kinds = [kind for kind in ESTIMATORS if name in REPARAMETERISED or not getattr(kind, "reparameterised", False)]
    return [kind for kind in kinds if not (executor == "one by one" and getattr(kind, "delta", 0.0))]


def check(found, expected):
    chex.assert_trees_all_close(found, {name: expected[name] for name in found}, rtol=5e-5, atol=2e-6)


def slow_but(fast, names):
    """All names as parameters, marked as slow but one."""
    return [pytest.param(name, marks=() if name == fast else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", slow_but("subsampled", models.BY_HAND))
def test_every_executor_gives_the_numbers_of_the_vectorised_one(name):
    """Of two particles, each a chunk of its own; the next test has larger groups, and devices."""
    model, guide, x = models.BY_HAND[name][:3]

    @jax.jit
    def all_of():
        programs_ = programs_of(model, guide, *PARAMS, x)
        run = lambda make, kinds: values_and_gradients(make(), programs_, 2, kinds)
        found = {executor: run(make, kinds_of(name, executor)) for executor, make in EXECUTORS.items()}
        return run(Vectorized, kinds_of(name)), found

    expected, found = all_of()
    for executor in EXECUTORS:
        check(found[executor], expected)


@pytest.mark.slow
def test_groups_of_particles_give_the_numbers_of_all_at_once():
    """Chunks of 3, 3 and 2, and two particles on each of four devices."""
    name = "subsampled"
    model, guide, x = models.BY_HAND[name][:3]

    @jax.jit
    def all_of():
        programs_ = programs_of(model, guide, *PARAMS, x)
        executors = Vectorized(), Chunked(Vectorized(), 3), over_devices(4)
        return [values_and_gradients(executor, programs_, 8, kinds_of(name)) for executor in executors]

    expected, *found = all_of()
    for one in found:
        check(one, expected)


SEVERAL_UNITS = {"mixed", "nested plates", "subsampled", "masked", "scaled"}
SINGLE_UNITS = [name for name in models.BY_HAND if name not in SEVERAL_UNITS]


@pytest.mark.parametrize("name", slow_but("one latent", SINGLE_UNITS))
def test_by_paths_gives_the_numbers_of_the_vectorised_one(name):
    """By paths, all of a datum is one unit. Programs without branches have one path, with defensive proposals two."""
    model, guide, x = models.BY_HAND[name][:3]
    programs_ = programs_of(model, guide, *PARAMS, jnp.asarray(x))
    expected = jax.jit(lambda: values_and_gradients(Vectorized(), programs_, 4, kinds_of(name)))()
    by_paths = ByPaths(cache=PathCache(compile_after=0))
    check(values_and_gradients(by_paths, programs_, 4, kinds_of(name), one_by_one=True), expected)


@pytest.mark.slow
def test_programs_of_one_datum_run_in_every_way():
    """The data axis is the executor's: values and gradients are those of the vectorised one over it."""
    data = Data(0)
    programs_ = programs_of(models.one_model, models.one_guide, *PARAMS, models.PLATE_X)

    @jax.jit
    def all_of():
        at_once = Vectorized(data)
        executors = at_once, Chunked(at_once, 1), DataChunks(at_once, 2), DataChunks(at_once, 1), OneByOne(data)
        return [values_and_gradients(executor, programs_, 2, ALL_AT_ONCE) for executor in executors]

    expected, *found = all_of()
    for one in found:
        check(one, expected)
    by_paths = ByPaths(data, cache=PathCache(compile_after=0))
    check(values_and_gradients(by_paths, programs_, 2, ALL_AT_ONCE, one_by_one=True), expected)


# The table can fail


class Wrong(Executor):
    """A vectorised executor with a fault."""

    def __init__(self, fault):
        self.fault = fault

    def __call__(self, particle, programs_, num):
        numbers = jnp.arange(num)
        if self.fault == "repeats an index":
            numbers = numbers.at[1].set(0)
        if self.fault == "shifts the indices":
            numbers = numbers + 1
        result = Vectorized().over(numbers, particle, programs_)
        if self.fault == "drops a particle":
            result = jax.tree.map(lambda leaf: leaf[1:], result)
        if self.fault == "loses a scale":
            result = replace(result, units=replace(result.units, scale=1.0))
        if self.fault == "loses a gradient":
            result = jax.lax.stop_gradient(result)
        return result


FAULTS = ["repeats an index", "shifts the indices", "drops a particle", "loses a scale", "loses a gradient"]


def test_an_executor_that_is_wrong_is_seen():
    """By every estimator: not even the loss of one gradient, the smallest of these, is within the tolerance."""
    model, guide, x = models.BY_HAND["subsampled"][:3]
    kinds = [WakeParticle(), DreamParticle()]

    @jax.jit
    def all_of():
        programs_ = programs_of(model, guide, *PARAMS, x)
        return [values_and_gradients(executor, programs_, 8, kinds) for executor in (Vectorized(), *map(Wrong, FAULTS))]

    expected, *found = all_of()
    for results in found:
        for name in results:
            with pytest.raises(AssertionError):
                check({name: results[name]}, expected)
