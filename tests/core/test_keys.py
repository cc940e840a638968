"""Keys that are split and folded by one kernel are JAX's own in all else."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from rws_jax.core.keys import plain, quick
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.vectorized import Vectorized
from tests import oracles

pytestmark = pytest.mark.usefixtures("allow_key_reuse")
DATA = jax.random.key_data


@jax.jit
def derived(rng_key, of):
    """Keys made of one key in all ways, and bits."""
    keys = jax.random.split(rng_key, (2, 3))
    folded = jax.vmap(jax.random.fold_in, (None, 0))(rng_key, of)
    further = jax.vmap(jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 5))))(keys)
    return DATA(keys), DATA(folded), DATA(further), jax.random.bits(rng_key, (3,))


@pytest.mark.parametrize("partitionable", [True, False])
def test_quick_keys_make_the_keys_that_jax_makes(partitionable):
    with jax.threefry_partitionable(partitionable):
        rng_key, of = jax.random.key(7), jnp.array([0, 1, 0xFFFFFFFF], jnp.uint32)
        assert (quick(rng_key).dtype != rng_key.dtype) == partitionable
        for found, expected in zip(derived(quick(rng_key), of), derived(rng_key, of), strict=True):
            assert jnp.array_equal(found, expected)
        assert plain(quick(rng_key)) == rng_key


def test_each_hash_is_compiled_once():
    """Without barriers each kernel has the whole chain of hashes in it that its key is made by."""

    def derived_in_turn(rng_key):
        for _ in range(4):
            rng_key, of_site = jax.random.split(rng_key)
        return DATA(jax.vmap(jax.random.fold_in, (None, 0))(of_site, jnp.arange(3)))

    compiled = jax.jit(derived_in_turn).lower(quick(jax.random.key(0))).compile().as_text()
    assert compiled.count(" xor(") <= 5 * 25  # five hashes of 20 rounds, and schedules of their keys


@pytest.mark.parametrize(
    "rng_key", [jax.random.key(0, impl="rbg"), jax.random.PRNGKey(0), None], ids=["rbg", "without a type", "none"]
)
def test_keys_of_other_kinds_stay_as_they_are(rng_key):
    assert quick(rng_key) is rng_key
    assert plain(rng_key) is rng_key


def test_programs_see_keys_of_the_kind_that_they_are_seeded_with():
    """In loops too; JAX draws from a Poisson distribution by keys of its own kind alone."""
    seen = []

    def program():
        seen.append(numpyro.prng_key())

        def step(rate, _):
            seen.append(numpyro.prng_key())
            z = numpyro.sample("z", dist.Poisson(rate))
            return jnp.exp(jax.random.normal(seen[-1])) + 0.1 * z, None

        scan(step, 1.0, None, length=2)

    programs = oracles.programs_of(program, program, {}, {})
    jax.eval_shape(lambda: Vectorized()(WakeParticle(), programs, 3).log_q)
    assert len(seen) >= 4
    assert {key.dtype for key in seen} == {jax.random.key(0).dtype}
