"""What one particle has and another has not is laid side by side, filled up and said to be missing."""

import jax.numpy as jnp
import numpy as np
import pytest

from rws_jax.execution.ragged import Ragged, scattered, split, stacked

ONE = Ragged.of({"n": jnp.array(1), "a": jnp.array([1.0])}, {"n": "count", "a": "reals"})
TWO = Ragged.of({"n": jnp.array(2), "a": jnp.array([2.0, 3.0]), "b": jnp.array(True)}, {"n": "count", "b": "flag"})


def check(joined):
    np.testing.assert_array_equal(joined.values["n"], [2, 1])
    np.testing.assert_array_equal(joined.values["a"], [[2.0, 3.0], [1.0, np.nan]])
    np.testing.assert_array_equal(joined.values["b"], [True, False])
    np.testing.assert_array_equal(joined.present["a"], [[True, True], [True, False]])
    np.testing.assert_array_equal(joined.present["b"], [True, False])
    assert "n" not in joined.present
    assert dict(joined.kinds) == {"n": "count", "a": "reals", "b": "flag"}


def test_single_particles():
    check(stacked([TWO, ONE]))


def test_groups_of_particles():
    """Each goes to where its members are; groups may have been filled up before."""
    group = lambda one: Ragged({name: np.asarray(x)[None] for name, x in one.values.items()}, {}, one.kinds)
    check(scattered([group(ONE), group(TWO)], [np.array([1]), np.array([0])]))
    filled = scattered([group(ONE), group(TWO)], [np.array([0]), np.array([1])])
    again = scattered([filled], [np.array([1, 0])])
    check(again)


def test_what_all_have_is_left_as_it_is():
    joined = stacked([ONE, ONE])
    assert not joined.present
    np.testing.assert_array_equal(joined.values["a"], [[1.0], [1.0]])


def test_a_tree_is_taken_apart_and_put_together():
    numbers, ragged, layout = split({"x": 1.0, "r": ONE, "y": (2.0, TWO)})
    assert numbers == [1.0, 2.0]
    assert layout.filled([3.0, 4.0], ragged) == {"x": 3.0, "r": ONE, "y": (4.0, TWO)}
    assert layout == split({"x": 5.0, "r": TWO, "y": (6.0, ONE)})[2]  # whatever is in the ragged nodes


def test_names_that_mean_different_things_are_refused():
    other = Ragged.of({"n": jnp.array([1])}, {"n": "count"})
    with pytest.raises(ValueError, match=r"(?s)'n' has different numbers of axes on different paths.*\(\) and \(1,\)"):
        stacked([ONE, other])
    other = Ragged.of({"n": jnp.array(1)}, {"n": "real"})
    with pytest.raises(ValueError, match=r"(?s)'n' differs between paths.*count.*real"):
        stacked([ONE, other])
