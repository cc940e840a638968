"""Trees: numbers that stay finite, and one of two trees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rws_jax.core.trees import chosen, stays_finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 7, 2048, 5000, 100_000])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(size, bad):
    """In arrays of any size: a reduction of XLA may lose NaN in large ones."""
    stays = jax.jit(stays_finite)
    old = jnp.zeros(size)
    assert stays({"a": old + 1e38, "b": old}, {"a": old, "b": old})
    for place in {0, size // 2, size - 1}:
        new = old.at[place].set(bad)
        assert not stays({"a": old, "b": new}, {"a": old, "b": old})
        assert stays({"a": new}, {"a": new})  # it was not finite before


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.complex64])
def test_numbers_of_other_types_stay_finite(dtype):
    old = jnp.zeros(5000, dtype)
    assert stays_finite([old + 1], [old])
    assert not stays_finite([old.at[4999].set(jnp.nan)], [old])


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize("condition", [True, False])
def test_one_of_two_trees_is_chosen_compiled_or_not(condition):
    trees = [{"x": jnp.array([number]), "n": jnp.array(int(number)), "key": jax.random.key(7)} for number in (1.0, 2.0)]
    expected = trees[0] if condition else trees[1]
    for choose in (chosen, jax.jit(chosen)):
        found = choose(jnp.array(condition), *trees)
        chex.assert_trees_all_equal(found["x"], expected["x"])
        chex.assert_trees_all_equal(found["n"], expected["n"])
        assert (jax.random.key_data(found["key"]) == jax.random.key_data(expected["key"])).all()
