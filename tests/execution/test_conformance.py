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

from rws_jax.estimators import dreg, score, vimco
from rws_jax.estimators.bound import theta_loss
from rws_jax.estimators.sleep import DreamParticle, dream_loss
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.branching.path_cache import PathCache
from rws_jax.execution.by_paths import ByPaths
from rws_jax.execution.chunked import Chunked
from rws_jax.execution.data_axes import Data
from rws_jax.execution.executor import Executor
from rws_jax.execution.one_by_one import OneByOne
from rws_jax.execution.vectorized import Vectorized
from tests import models
from tests.oracles import programs_of

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
NUM, PARAMS = 8, (models.BY_HAND_THETA, models.BY_HAND_PHI)
REPARAMETERISED = {"one latent", "two latents", "transformed", "hierarchical", "nested plates", "sequential plates"}
REPARAMETERISED |= {"subsampled", "scan", "reversed scan"}

# what a particle computes -> the estimators that are functions of it
ESTIMATORS = {
    WakeParticle(): {
        "theta": theta_loss,
        "phi": score.phi_loss,
        "phi, plain": score.plain_phi_loss,
        "phi, vimco": vimco.phi_loss,
    },
    WakeParticle(0.3): {"theta, defensive": theta_loss, "phi, defensive": score.phi_loss},
    WakeParticle(reparameterised=True): {"phi, dreg": dreg.phi_loss},
    DreamParticle(): {"sleep": dream_loss},
}


def over_devices():
    return Vectorized(particle_sharding=NamedSharding(jax.make_mesh((8,), ("p",)), PartitionSpec("p")))


EXECUTORS = {
    "chunked": lambda: Chunked(Vectorized(), 3),  # chunks of 3, 3 and 2
    "over devices": over_devices,
    "one by one": OneByOne,
}


def values_and_gradients(executor, programs_, kinds):
    """Of all estimators of these kinds of particles."""
    results = {}
    for particle in kinds:
        run = lambda params, particle=particle: executor(particle, programs_.with_params(params), NUM)
        scored, pullback = jax.vjp(run, programs_.params)
        for name, loss in ESTIMATORS[particle].items():
            value, cotangent = jax.value_and_grad(loss)(scored)
            results[name] = value, pullback(cotangent)[0]
    return results


def kinds_of(name, executor=None):
    """Kinds of particles that apply: where they run alone, a defensive choice is of a particle, not of each unit."""
    kinds = [kind for kind in ESTIMATORS if name in REPARAMETERISED or not getattr(kind, "reparameterised", False)]
    return [kind for kind in kinds if not (executor == "one by one" and getattr(kind, "delta", 0.0))]


def check(found, expected):
    chex.assert_trees_all_close(found, {name: expected[name] for name in found}, rtol=5e-5, atol=2e-6)


FAST = {"one latent", "subsampled"}
by_class = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in models.BY_HAND]
)


@by_class
def test_every_executor_gives_the_numbers_of_the_vectorised_one(name):
    model, guide, x = models.BY_HAND[name][:3]

    @jax.jit
    def all_of():
        programs_ = programs_of(model, guide, *PARAMS, x)
        run = lambda make, kinds: values_and_gradients(make(), programs_, kinds)
        found = {executor: run(make, kinds_of(name, executor)) for executor, make in EXECUTORS.items()}
        return run(Vectorized, kinds_of(name)), found

    expected, found = all_of()
    for executor in EXECUTORS:
        check(found[executor], expected)


def single_units():
    """Model classes of one unit: by paths, all of a datum is one."""
    several = {"mixed", "nested plates", "subsampled", "masked", "scaled"}
    marks = lambda name: () if name == "one latent" else pytest.mark.slow
    return [pytest.param(name, marks=marks(name)) for name in models.BY_HAND if name not in several]


@pytest.mark.parametrize("name", single_units())
def test_by_paths_gives_the_numbers_of_the_vectorised_one(name):
    """Programs without branches have one path, and with defensive proposals two."""
    model, guide, x = models.BY_HAND[name][:3]
    programs_ = programs_of(model, guide, *PARAMS, jnp.asarray(x))
    expected = jax.jit(lambda: values_and_gradients(Vectorized(), programs_, kinds_of(name)))()
    by_paths = ByPaths(cache=PathCache(compile_after=0))
    check(values_and_gradients(by_paths, programs_, kinds_of(name)), expected)


def test_programs_of_one_datum_run_in_every_way():
    """The data axis is the executor's: values and gradients are those of the vectorised one over it."""
    data, kinds = Data(0), [kind for kind in ESTIMATORS if not getattr(kind, "delta", 0.0)]
    programs_ = programs_of(models.one_model, models.one_guide, *PARAMS, models.PLATE_X)

    @jax.jit
    def all_of():
        executors = Vectorized(data), Chunked(Vectorized(data), 3), OneByOne(data)
        return [values_and_gradients(executor, programs_, kinds) for executor in executors]

    expected, *found = all_of()
    for one in found:
        check(one, expected)
    by_paths = ByPaths(data, cache=PathCache(compile_after=0))
    check(values_and_gradients(by_paths, programs_, kinds), expected)


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
        result = Vectorized()(particle, programs_, num, numbers)
        if self.fault == "drops a particle":
            result = jax.tree.map(lambda leaf: leaf[1:], result)
        if self.fault == "loses a scale":
            result = replace(result, units=replace(result.units, scale=1.0))
        if self.fault == "loses a gradient":
            result = jax.lax.stop_gradient(result)
        return result


@pytest.mark.parametrize(
    "fault", ["repeats an index", "shifts the indices", "drops a particle", "loses a scale", "loses a gradient"]
)
def test_an_executor_that_is_wrong_is_seen(fault):
    """Not even the loss of one gradient, the smallest of these, is within the tolerance."""
    model, guide, x = models.BY_HAND["subsampled"][:3]
    kinds = [WakeParticle(), DreamParticle()]

    @jax.jit
    def all_of():
        programs_ = programs_of(model, guide, *PARAMS, x)
        return [values_and_gradients(executor, programs_, kinds) for executor in (Vectorized(), Wrong(fault))]

    expected, found = all_of()
    for name in found:
        with pytest.raises(AssertionError):
            check({name: found[name]}, expected)
