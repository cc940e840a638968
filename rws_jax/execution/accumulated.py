"""Sums over parts, with their gradients taken part by part, in the same pass.

Reverse mode through a loop keeps what every part has computed until the last one is done, or computes each part twice.
Where all that is wanted are sums of scalars, gradients of a part can be taken as soon as the part is known: of each
part these alone are kept, and they are added up.
"""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from rws_jax.core.trees import is_float

Sums = TypeVar("Sums")
Rest = TypeVar("Rest")
_Leaves = list[Any]


def accumulated(function: Callable[[Any, jax.Array], tuple[Sums, Rest]], inputs: Any, num: int) -> tuple[Sums, Rest]:
    """Sum ``function(inputs, 0)``, ..., ``function(inputs, num - 1)``, one after the other.

    It is traced once, and differentiated in reverse mode, with respect to `inputs` and to what it closes over.

    Args:
      function: returns a pair: a tree of floating point scalars, and a tree of arrays that are constants.
      inputs: tree of arrays.
      num: how many parts there are, at least 1.

    Returns:
      Sums of the scalars, and the arrays of all parts, stacked.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(inputs, jnp.zeros((), jnp.int32))
    structures = [jax.tree.structure(shape) for shape in shapes]
    dtypes = [shape.dtype for shape in jax.tree.leaves(shapes[0])]
    # What the function closes over may be differentiated as well, which JAX allows for arguments alone.
    leaves, num_closed_over = [*closed.consts, *jax.tree.leaves(inputs)], len(closed.consts)
    types = [jnp.result_type(leaf) for leaf in leaves]

    # Functions, as the rules of a derivative may be traced later, when arrays that are made here are gone.
    numbers, zeros = lambda: jnp.arange(num, dtype=jnp.int32), lambda: [jnp.zeros((), dtype) for dtype in dtypes]

    def of_part(leaves: _Leaves, number: jax.Array) -> tuple[_Leaves, _Leaves]:
        consts, own = leaves[:num_closed_over], leaves[num_closed_over:]
        results = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(*own, number)
        return results[: len(dtypes)], results[len(dtypes) :]

    @jax.custom_vjp
    def of_all(*leaves: Any) -> tuple[_Leaves, _Leaves]:
        def body(totals: _Leaves, number: jax.Array) -> tuple[_Leaves, _Leaves]:
            sums, rest = of_part([*leaves], number)
            return _added(totals, sums), rest

        return lax.scan(body, zeros(), numbers())

    def forward(*inputs: Any) -> tuple[tuple[_Leaves, _Leaves], dict[int, _Leaves]]:
        leaves = [each.value for each in inputs]
        moved = [number for number, each in enumerate(inputs) if each.perturbed and is_float(each.value)]
        floats = [leaves[number] for number in moved]

        def body(carry: tuple, number: jax.Array) -> tuple[tuple, _Leaves]:
            def of_floats(floats: _Leaves) -> tuple[_Leaves, _Leaves]:
                whole = dict(enumerate(leaves)) | dict(zip(moved, floats, strict=True))
                return of_part([*whole.values()], number)

            (totals, gradients), (sums, along, rest) = carry, jax.linearize(of_floats, floats, has_aux=True)
            new = [_added(old, own) for old, own in zip(gradients, _each_gradient(along, floats, sums), strict=True)]
            return (_added(totals, sums), new), rest

        none = [[jnp.zeros_like(x, _wide(x)) for x in floats] for _ in dtypes]
        (totals, gradients), rest = lax.scan(body, (zeros(), none), numbers())
        return (totals, rest), {number: [own[i] for own in gradients] for i, number in enumerate(moved)}

    def backward(gradients: dict[int, _Leaves], cotangents: tuple[_Leaves, _Leaves]) -> tuple:
        moving = [(number, by) for number, by in enumerate(cotangents[0]) if not isinstance(by, SymbolicZero)]

        def of_leaf(number: int) -> jax.Array | None:
            if number not in gradients or not moving:
                return None
            total = reduce(jnp.add, [gradients[number][which] * by for which, by in moving])
            return total.astype(types[number])

        return tuple(map(of_leaf, range(len(types))))

    of_all.defvjp(forward, backward, symbolic_zeros=True)
    sums, rest = of_all(*leaves)
    return jax.tree.unflatten(structures[0], sums), jax.tree.unflatten(structures[1], rest)


def _each_gradient(along: Callable, floats: _Leaves, sums: _Leaves) -> Iterator[_Leaves]:
    """Gradients of each of the sums by itself, whose cotangents are known only once all parts are done."""
    for number, value in enumerate(sums):
        transposed = jax.linear_transpose(lambda moves, number=number: along(moves)[number], floats)
        yield transposed(jnp.ones_like(value))[0]


def _added(totals: _Leaves, own: _Leaves) -> _Leaves:
    return [total + x.astype(total.dtype) for total, x in zip(totals, own, strict=True)]


def _wide(x: jax.Array) -> Any:
    """In single precision at least: in bfloat16 a sum of many would stop to grow."""
    return jnp.promote_types(jnp.result_type(x), jnp.float32)
