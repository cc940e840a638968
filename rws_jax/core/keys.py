"""Keys that are split and folded by one kernel each, and give the same keys as JAX's own.

On CPU, JAX compiles Threefry (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405) as a loop of five times four
rounds, which is right for many numbers. For the few of a key it takes 80 kernels, in each step of a `scan` again. Here
the rounds are written out. Programs never see such keys: they are turned back before a site, or a program, uses one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import define_prng_impl, threefry_prng_impl

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def quick(rng_key: Any) -> Any:
    """The same key, to be split and folded quickly; as it is, if it is of another kind than JAX's default."""
    config: Any = jax.config
    if not (_is_of(rng_key, _DEFAULT) and config.jax_threefry_partitionable):
        return rng_key
    return jax.random.wrap_key_data(jax.random.key_data(rng_key), impl=_QUICK)


def plain(rng_key: Any) -> Any:
    """The same key as one of JAX's own kinds."""
    if not _is_of(rng_key, _QUICK):
        return rng_key
    return jax.random.wrap_key_data(jax.random.key_data(rng_key), impl=_DEFAULT)


def split(rng_key: jax.Array, num: int) -> jax.Array:
    """What `jax.random.split` gives, quickly."""
    return plain(jax.random.split(quick(rng_key), num))


def _is_of(rng_key: Any, impl: Any) -> bool:
    is_typed = isinstance(rng_key, jax.Array) and jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    return is_typed and jax.random.key_impl(rng_key) == impl


@jax.jit
def _hashed(key: jax.Array, count: jax.Array) -> jax.Array:
    """Two words for each number of `count`, below 2^32, by 20 rounds of Threefry; shape ``(*count, 2)``."""
    schedule = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY)
    x, y = jnp.broadcast_to(schedule[0], count.shape), schedule[1] + count
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ (y << jnp.uint32(rotation) | y >> jnp.uint32(32 - rotation))
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    # Without a barrier XLA writes one hash out anew in each kernel that uses it, and theirs in those that use them.
    return lax.optimization_barrier(jnp.stack([x, y], axis=-1))


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    count = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    return _hashed(key, count).reshape(*shape, 2)


def _fold_in(key: jax.Array, data: Any) -> jax.Array:
    return _hashed(key, jnp.asarray(data, jnp.uint32))


_DEFAULT = "threefry2x32"
_QUICK: Any = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=threefry_prng_impl.random_bits,
    fold_in=_fold_in,
    name="threefry2x32 of few numbers",
    tag="few",
)
