"""Equal equations are merged, and nothing else: values and gradients stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rws_jax.core.merged import merged

X = jnp.array([0.3, -0.7, 1.1])


def primitives(function, *args):
    """Names of the operations that are left once a function is merged."""
    return [eqn.primitive.name for eqn in merged(jax.make_jaxpr(function)(*args)).jaxpr.eqns]


def check_same(function, *args):
    """Of the merged function: the same values, and the same gradient of their sum."""
    once = jax.extend.core.jaxpr_as_fun(merged(jax.make_jaxpr(function)(*args)))
    np.testing.assert_array_equal(np.stack(once(*args)), np.stack(jax.tree.leaves(function(*args))))
    total = lambda function: lambda x: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(function(x, *args[1:])))
    np.testing.assert_allclose(jax.grad(total(once))(args[0]), jax.grad(total(function))(args[0]), rtol=1e-6)


def twice(function):
    return lambda x: (function(x), function(x))


def scanned(x, factor=2.0):
    return lax.scan(lambda carry, row: (carry * factor + jnp.sin(row), carry), 0.0, x)[0]


def by_loop(x):
    return lax.fori_loop(0, 3, lambda i, total: total + jnp.sin(x[i]), 0.0)


ONCE = {
    "sin": (jnp.sin, "sin"),
    "relu, a function of JAX with a derivative of its own": (jax.nn.relu, "custom_jvp_call"),
    "silu": (jax.nn.silu, "jit"),
    "log-sum-exp": (jax.scipy.special.logsumexp, "exp"),
    "scan": (scanned, "scan"),
    "loop": (by_loop, "scan"),
    "jit": (jax.jit(lambda x: jnp.sin(x) + 1.0), "jit"),
    "a constant": (lambda x: x @ np.eye(3, dtype=np.float32), "dot_general"),
    "a large constant": (lambda x: jnp.sum(x) + np.ones(1000, np.float32), "add"),
    "constants of whole numbers": (lambda x: x[jnp.array([2, 0])], "gather"),
    "remat": (jax.checkpoint(lambda x: jnp.sin(x)), "checkpoint"),
}


@pytest.mark.usefixtures("allow_rank_promotion")
@pytest.mark.parametrize("name", ONCE)
def test_what_is_computed_twice_is_done_once(name):
    function, primitive = ONCE[name]
    found = primitives(twice(function), X)
    alone = primitives(function, X)
    assert found == alone
    assert primitive in {name.replace("pjit", "jit").replace("remat2", "checkpoint") for name in found}
    check_same(twice(function), X)


def own_jvp(factor):
    """One body, derivatives that differ."""

    @jax.custom_jvp
    def function(x):
        return jnp.sin(x)

    function.defjvp(lambda primals, tangents: (jnp.sin(*primals), factor * tangents[0]))
    return function


def own_vjp(factor):
    @jax.custom_vjp
    def function(x):
        return jnp.sin(x)

    function.defvjp(lambda x: (jnp.sin(x), None), lambda _, cotangent: (factor * cotangent,))
    return function


def straight_through(factor):
    """A function of JAX with a derivative of the user's."""
    function = jax.custom_jvp(jnp.floor)
    function.defjvp(lambda primals, tangents: (jnp.floor(*primals), factor * tangents[0]))
    return function


def by_argument(factor):
    """Straight through, with one derivative for each argument."""
    function = jax.custom_jvp(jnp.floor)
    function.defjvps(lambda tangent, _, x: factor * tangent)
    return function


def clipped(factor):
    @jax.custom_gradient
    def function(x):
        return x, lambda cotangent: factor * cotangent

    return function


DIFFERENT = {
    "custom_jvp": own_jvp,
    "custom_vjp": own_vjp,
    "custom_gradient": clipped,
    "custom_jvp of a function of JAX": straight_through,
    "custom_jvp of a function of JAX, by argument": by_argument,
    "custom_jvp in jit": lambda factor: jax.jit(own_jvp(factor)),
    "custom_jvp in scan": lambda factor: lambda x: lax.scan(lambda c, row: (c + own_jvp(factor)(row), None), 0.0, x)[0],
    "custom_jvp in remat": lambda factor: jax.checkpoint(own_jvp(factor)),
    "custom_jvp in cond": lambda factor: lambda x: lax.cond(x[0] > 0, own_jvp(factor), lambda x: x, x),
    "scan": lambda factor: lambda x: scanned(x, factor),
    "power": lambda factor: lambda x: x ** int(factor),
    "whole numbers and floats": lambda factor: lambda x: x * (1 if factor == 2.0 else 1.0) * factor,
    "solver": lambda factor: (
        lambda x: lax.custom_root(lambda y: y - jnp.sin(x), x, lambda f, y: jnp.sin(x), lambda g, y: factor * y)
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_has_another_derivative_is_kept(name):
    functions = [DIFFERENT[name](factor) for factor in (2.0, 3.0)]
    check_same(lambda x: tuple(function(x) for function in functions), X)


def test_a_function_of_a_user_with_one_derivative_is_merged():
    function = own_jvp(2.0)
    check_same(twice(function), X)
    assert primitives(twice(function), X) == ["custom_jvp_call"]


def test_constants_are_compared_to_the_last_bit():
    """Signs of zeros, NaN, and types."""
    quotients = lambda x: (1.0 / (0.0 * x + 0.0), 1.0 / jnp.copysign(0.0 * x + 1.0, 0.0), jnp.copysign(x, -0.0))
    check_same(quotients, jnp.abs(X))
    signs = lambda x: (jnp.copysign(x, np.float32(0.0)), jnp.copysign(x, np.float32(-0.0)))
    check_same(signs, X)
    arrays = lambda x: tuple(jnp.copysign(x, np.array([zero] * 3, np.float32)) for zero in (0.0, -0.0))
    check_same(arrays, X)
    of_nan = lambda x: tuple(jnp.where(x > 0, x, np.nan) for _ in range(2))
    assert primitives(of_nan, X).count("select_n") == 1 or primitives(of_nan, X).count("jit") == 1
    types = lambda x: (jnp.asarray(x > 0, jnp.int32) + np.int32(1), jnp.asarray(x > 0, jnp.int32) | np.array(True))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(types(X))} == {"int32"}
    once = jax.extend.core.jaxpr_as_fun(merged(jax.make_jaxpr(types)(X)))
    np.testing.assert_array_equal(np.stack(once(X)), np.stack(types(X)))


def test_keys_that_differ_draw_different_numbers():
    def draws(key):
        first, second = jax.random.split(key)
        return tuple(jax.random.normal(k) for k in (first, second, first, jax.random.key(1), jax.random.key(2)))

    with jax.debug_key_reuse(False):
        once = jax.extend.core.jaxpr_as_fun(merged(jax.make_jaxpr(draws)(jax.random.key(0))))
        np.testing.assert_array_equal(once(jax.random.key(0)), draws(jax.random.key(0)))


def test_outputs_that_one_of_two_equal_operations_drops_are_kept_for_the_other():
    first_alone = jax.jit(lambda x: lax.top_k(x, 2))
    check_same(lambda x: (lax.top_k(x, 2)[0].sum(), lax.top_k(x, 2)[1].sum() + 0.0 * x.sum()), X)
    check_same(lambda x: (first_alone(x)[0].sum(), first_alone(x)[1].sum() + 0.0 * x.sum()), X)
    check_same(lambda x: (scanned(x), lax.scan(lambda c, row: (c * 2.0 + jnp.sin(row), c), 0.0, x)[1].sum()), X)


def test_effects_happen_as_often_as_they_did(capfd):
    def printing(x):
        for _ in range(2):
            jax.debug.print("seen {}", x)
        return (jnp.sin(x),)

    jax.block_until_ready(jax.extend.core.jaxpr_as_fun(merged(jax.make_jaxpr(printing)(1.0)))(1.0))
    jax.effects_barrier()
    assert capfd.readouterr().out.count("seen") == 2
