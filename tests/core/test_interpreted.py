"""Functions evaluated and differentiated equation by equation, held against JAX."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rws_jax.core.equations import function_of
from rws_jax.core.interpreted import Interpreted

pytestmark = pytest.mark.usefixtures("allow_key_reuse")
X, Y = jnp.array([0.3, -1.2, 0.7]), jnp.array(2.0)


def branches(x, y):
    return lax.cond(y > 1.0, lambda x: jnp.sum(jnp.sin(x)), lambda x: jnp.sum(x), x) * y


def loop(x, y):
    final, steps = lax.scan(lambda carry, a: (carry * a + y, jnp.tanh(carry)), y, x)
    return final + jnp.sum(steps)


def several_outputs(x, y):
    low, high = jnp.split(x, [1])
    return jnp.sum(low) * y + jnp.prod(high), y**2


@jax.jit
def network(x, y):
    hidden = jax.nn.relu(x * y)
    return hidden, jnp.argmax(hidden), jnp.tanh(hidden)


def nested(x, y):
    """An output of the inner function that nothing depends on, and one that is an integer."""
    first, place, _ = network(x, y)
    second, *_ = network(first + place, y)
    return jnp.sum(second)


def stopped(x, y):
    return jnp.sum(lax.stop_gradient(x) * y * x), x[0]


def output_is_input(x, y):
    return y, y, 3.0 * jnp.ones(())


def two_sums(x, y):
    """Sums of numbers of one shape, of one number with itself, and of which one summand has no derivative."""
    both = jnp.sin(x) + jnp.cos(x)
    return jnp.sum(both + both) + jnp.sum(x + lax.stop_gradient(x)) * y


@jax.jit
def constant_output(x, y):
    return jnp.sum(x) * y, 1.0


def constant_of_a_call(x, y):
    """A call one output of which is a number of Python."""
    first, second = constant_output(x, y)
    return first * second, second


def last_of_several(x, y):
    """A call of which the last output alone is needed."""
    *_, last = network(x, y)
    return jnp.sum(last)


def first_and_last_of_several(x, y):
    first, _, last = network(x, y)
    return jnp.sum(first * last)


FUNCTIONS = [branches, loop, several_outputs, nested, stopped, output_is_input, two_sums]
FUNCTIONS += [last_of_several, first_and_last_of_several, constant_of_a_call]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_values_and_gradients_are_those_of_jax(function):
    leaves = lambda x, y: jax.tree.leaves(function(x, y))
    interpreted = Interpreted(jax.make_jaxpr(leaves)(X, Y), (0, 1))
    outputs, values = interpreted([X, Y])
    expected, pullback = jax.vjp(leaves, X, Y)
    chex.assert_trees_all_close(outputs, expected, rtol=1e-6)
    cotangents = [jnp.full(output.shape, 0.5 + number) for number, output in enumerate(expected)]
    totals = [jnp.ones(3), jnp.array(-1.0)]
    gradients = interpreted.gradients(values, cotangents, totals)
    expected = [total + gradient for total, gradient in zip(totals, pullback(cotangents), strict=True)]
    chex.assert_trees_all_close(gradients, expected, rtol=1e-5, atol=1e-6)


def test_equal_equations_are_computed_once_and_compiled_once():
    """What no output needs is not computed, and constants are inputs of what is compiled."""

    def function(x):
        jnp.exp(x)
        return jnp.sum(jnp.sin(x) * 2.0 + jnp.sin(x) * 3.0)

    jaxpr = jax.make_jaxpr(function)(X)
    before = function_of.cache_info().misses
    interpreted = Interpreted(jaxpr, (0,))
    assert len(interpreted._steps) == 5  # one sine, two products, their sum, the sum over numbers
    kinds = function_of.cache_info().misses - before
    again = Interpreted(jax.make_jaxpr(lambda x: jnp.sum(jnp.sin(x) * 5.0 + jnp.sin(x) * 7.0))(X), (0,))
    assert kinds <= 4
    assert function_of.cache_info().misses == before + kinds
    np.testing.assert_allclose(again([X])[0][0], 12.0 * np.sin(X).sum(), rtol=1e-5)


def test_inputs_without_derivative_get_none():
    interpreted = Interpreted(jax.make_jaxpr(lambda x, y: jnp.sum(x * y))(X, Y), (1,))
    _, values = interpreted([X, Y])
    (gradient,) = interpreted.gradients(values, [jnp.ones(())], [jnp.zeros(())])
    np.testing.assert_allclose(gradient, X.sum(), rtol=1e-6)
