"""Which outputs of a function depend on which inputs, with what is known of each by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxpr_as_fun

from rws_jax.core.dependence import dependence, in_part, without_unused

X = jnp.array([1.0, 2.0, 3.0])


def by_scan(x, y):
    """The carry gets y, and only the second output gets x."""
    (a, b), out = lax.scan(lambda carry, x: ((carry[0] + y[0], carry[1] * x), carry[0]), (0.0, 1.0), x)
    return a, b, out


def by_late_scan(x, y):
    """What comes into one carry reaches the next in a later step."""
    carry, _ = lax.scan(lambda c, _: ((x[0], c[0], c[1]), None), (0.0, 0.0, 0.0), None, length=3)
    return carry[2], jnp.sum(y)


def by_while(x, y):
    """The count of steps depends on x, so all that the loop computes does."""
    out = lax.while_loop(lambda c: c[0] < x[0], lambda c: (c[0] + 1.0, c[1] * 2.0), (0.0, y[0]))
    fixed = lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + x[0], c[2]), (0, 0.0, y[0]))
    return out[1], fixed[1], fixed[2]


def by_cond(x, y):
    return lax.cond(x[0] > 0, lambda: 1.0, lambda: 2.0), lax.cond(True, lambda: y[0], lambda: 2.0 * y[1])


@jax.custom_vjp
def first(x, y):
    return x


first.defvjp(lambda x, y: (x, y), lambda y, g: (y, g))


def by_calls(x, y):
    inner = jax.jit(lambda x, y: (2.0 * y, x))
    return *inner(x, y), jax.checkpoint(lambda y: y + 1.0)(y), first(x, y), first(y, x), jax.nn.relu(x)


def by_shape(x, y):
    return jnp.zeros_like(x), jnp.ones(len(x)) * x.size, y.reshape(-1)[: len(x)], 0.0 * x


def by_part(x, y):
    return in_part(~jnp.isnan(x), y, x), in_part(x > 0, y, x), jnp.where(jnp.isfinite(x), y, y)


def by_callback(x, y):
    seen = jax.experimental.io_callback(lambda x: np.float32(0.0), jax.ShapeDtypeStruct((), jnp.float32), x)
    return seen, jnp.sum(y)


def by_print(x, y):
    jax.debug.print("{}", x)
    return jnp.sum(y), jnp.sum(x)


# What depends on x, and what on y.
CASES = {
    "scan": (by_scan, [False, True, False], [True, False, True]),
    "a later step of scan": (by_late_scan, [True, False], [False, True]),
    "while": (by_while, [True, True, False], [True, False, True]),
    "cond": (by_cond, [True, False], [False, True]),
    "calls": (by_calls, [False, True, False, True, False, True], [True, False, True, False, True, False]),
    "shape": (by_shape, [False, False, False, True], [False, False, True, False]),
    "part": (by_part, [False, True, False], [True, True, True]),
    "callback": (by_callback, [True, True], [False, True]),
    "print": (by_print, [False, True], [True, False]),
    "sort and random": (
        lambda x, y: (jax.random.normal(jax.random.key(0), x.shape), jnp.sort(x), lax.top_k(y, 2)),
        [False, True, False, False],
        [False, False, True, True],
    ),
}


@pytest.mark.floors
@pytest.mark.parametrize("name", CASES)
def test_dependence_is_that_of_the_arithmetic(name):
    fn, of_x, of_y = CASES[name]
    for way in (fn,) if name == "callback" else (fn, jax.jit(fn)):  # jitted, all of it may come back from the host
        inputs = dependence(jax.make_jaxpr(way)(X, X))
        assert [0 in of_output for of_output in inputs] == of_x
        assert [1 in of_output for of_output in inputs] == of_y


@pytest.mark.parametrize("name", [name for name in CASES if "callback" not in name])
def test_what_moves_depends(name):
    """By values: with another x, no output moves that is said not to depend on it."""
    fn, of_x, _ = CASES[name]
    before, after = (jax.tree.leaves(fn(x, X)) for x in (X, jnp.array([-4.0, 0.5, 9.0])))
    moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    if name != "part":  # which is there to count as not depending on what it leaves
        assert all(depends or not moves for depends, moves in zip(of_x, moved, strict=True))


def test_what_no_output_needs_is_left_out():
    def function(x, y):
        unused = jax.lax.scan(lambda carry, x: (carry * x, None), y, x)[0]
        return jnp.sin(x) + y, (unused, jnp.cos(x))[1]

    whole = jax.make_jaxpr(function)(jnp.ones(3), 2.0)
    needed = without_unused(whole)
    assert "scan" in str(whole)
    assert "scan" not in str(needed)
    for own, expected in zip(jaxpr_as_fun(needed)(jnp.ones(3), 2.0), function(jnp.ones(3), 2.0), strict=True):
        assert (own == expected).all()


def test_which_numbers_are_missing_counts_where_it_is_asked_for():
    jaxpr = jax.make_jaxpr(lambda x, y: (jnp.isnan(x), jnp.isfinite(x) & (y > 0), x.shape[0] * y))(jnp.ones(3), 2.0)
    assert dependence(jaxpr) == [set(), {1}, {1}]
    assert dependence(jaxpr, also_missing=True) == [{0}, {0, 1}, {1}]
