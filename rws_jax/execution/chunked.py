"""Particles in chunks: each chunk is mapped over, and computed once more on the way back.

Between forward and backward pass only results are kept, a few numbers for each particle and unit: memory is that of one
chunk's programs, and of these.
"""

from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.checks.arguments import warn_of_rbg
from rws_jax.core.trees import split_floats
from rws_jax.execution.data import Data
from rws_jax.execution.executor import Executor, ParticleFn
from rws_jax.execution.vectorized import Vectorized
from rws_jax.programs.program import Programs

T = TypeVar("T")


@dataclass(frozen=True)
class Chunked(Executor):
    """So many particles at a time; the last chunk may have fewer."""

    mapped: Vectorized
    size: int

    @property
    def data(self) -> Data:
        """The data of each chunk."""
        return self.mapped.data

    def __call__(self, particle: ParticleFn[T], programs: Programs, num: int) -> T:
        """Map over one chunk after the other."""
        if num <= self.size:
            return self.mapped(particle, programs, num)
        warn_of_rbg(programs.rng_keys, "chunk_size")
        # Gradients of all chunks are added up in single precision at least: in bfloat16 a sum would stop to grow.
        floats, with_floats = split_floats(programs.params)
        wide = [jnp.asarray(x).astype(jnp.promote_types(jnp.result_type(x), jnp.float32)) for x in floats]

        def of_chunk(numbers: jax.Array) -> T:
            own = [x.astype(jnp.result_type(narrow)) for x, narrow in zip(wide, floats, strict=True)]
            return self.mapped.over(numbers, particle, programs.with_params(with_floats(own)))

        # Inside of a loop XLA does not merge the two runs of a chunk, so it need not be kept from it.
        of_chunk = jax.checkpoint(of_chunk, prevent_cse=False)
        num_full, num_rest = divmod(num, self.size)
        full = lax.map(of_chunk, jnp.arange(num_full * self.size).reshape(num_full, self.size))
        results = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), full)
        if not num_rest:
            return results
        rest = of_chunk(jnp.arange(num - num_rest, num))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), results, rest)
