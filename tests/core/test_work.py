"""Estimates of arithmetic, by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from rws_jax.core.work import work, work_by_group

MATRIX, KERNEL, X = jnp.ones((4, 8)), jnp.ones((3, 1, 2)), jnp.ones(8)
CASES = {
    "elements": (jnp.sin, 8),
    "a product": (lambda x: MATRIX @ x, 2 * 4 * 8),
    "jit": (jax.jit(lambda x: jnp.sin(jnp.cos(x))), 16),
    "a loop": (lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, length=5)[0], 5 * 8),
    "a convolution": (
        lambda x: lax.conv_general_dilated(x.reshape(1, 1, 8), KERNEL, (1,), "VALID"),
        8 + 2 * (3 * 7) * 2,  # reshaped; three channels of seven places, from two numbers each
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_arithmetic_is_counted(name):
    function, expected = CASES[name]
    assert work(jax.make_jaxpr(function)(X)) == expected


def test_each_group_of_outputs_counts_what_it_needs():
    def of_two(x):
        shared = jnp.sin(x)
        return jnp.cos(shared), MATRIX @ shared, x, 0.0

    jaxpr = jax.make_jaxpr(of_two)(X)
    assert work(jaxpr) == 8 + 8 + 64
    assert work_by_group(jaxpr, [1, 1, 2]) == [16, 72, 0]
