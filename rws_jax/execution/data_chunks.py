"""Data in chunks, each with all of its particles: results of different data have nothing to do with one another.

So losses, which are sums over data, are added up chunk by chunk, and so are their gradients: every particle runs once,
and memory is that of one chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.checks.arguments import warn_of_rbg
from rws_jax.execution.accumulated import accumulated
from rws_jax.execution.data import Data
from rws_jax.execution.executor import Executor, ParticleFn
from rws_jax.programs.program import Index, Programs

T = TypeVar("T")
Sums = TypeVar("Sums")
Rest = TypeVar("Rest")


@dataclass(frozen=True)
class DataChunks(Executor):
    """At most so many data at a time; chunks are of one size, and what does not fill one is a chunk of its own."""

    of_chunk: Executor
    size: int

    @property
    def data(self) -> Data:
        """The data of all chunks."""
        return self.of_chunk.data

    def __call__(self, particle: ParticleFn[T], programs: Programs, num: int) -> T:
        """Run one chunk after the other. As all results are kept, a gradient has each chunk run once more."""
        chunks = self._chunks(programs)
        if chunks is None:
            return self.of_chunk(particle, programs, num)
        run = lambda number: self.of_chunk(*chunks.taken(particle, programs, number), num)
        full = lax.map(jax.checkpoint(run, prevent_cse=False), jnp.arange(chunks.num))
        results = jax.tree.map(lambda leaf: _in_order(jnp.moveaxis(leaf, 0, 2), 1), full)
        if not chunks.num_rest:
            return results
        rest = self.of_chunk(*chunks.rest(particle, programs), num)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), results, rest)

    def summed(
        self, particle: ParticleFn[T], programs: Programs, num: int, summarise: Callable[[T], tuple[Sums, Rest]]
    ) -> tuple[Sums, Rest]:
        """Run one chunk after the other, and keep sums, their gradients and what there is of each datum."""
        chunks = self._chunks(programs)
        if chunks is None:
            return self.of_chunk.summed(particle, programs, num, summarise)

        def of_one(programs: Programs, number: jax.Array) -> tuple[Sums, Rest]:
            return self.of_chunk.summed(*chunks.taken(particle, programs, number), num, summarise)

        sums, full = accumulated(of_one, programs, chunks.num)
        of_data = jax.tree.map(lambda leaf: _in_order(jnp.moveaxis(leaf, 0, 1), 0), full)
        if not chunks.num_rest:
            return sums, of_data
        own_sums, rest = self.of_chunk.summed(*chunks.rest(particle, programs), num, summarise)
        of_data = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), of_data, rest)
        return jax.tree.map(jnp.add, sums, own_sums), of_data

    def _chunks(self, programs: Programs) -> "_Chunks | None":
        """How data are divided; None if there are so few that they are one chunk."""
        num_data = self.data.count(programs)
        if num_data is None or num_data <= self.size:
            return None
        warn_of_rbg(programs.rng_keys, "data_chunk_size")
        size = -(-num_data // -(-num_data // self.size))  # for chunks as equal as they can be
        return _Chunks(self.data, size, num_data // size, num_data % size)


@dataclass(frozen=True)
class _Chunks:
    """Chunk i has data i, i + num, i + 2 num, ...: where data are spread over devices, it has some of each device."""

    data: Data
    size: int
    num: int
    num_rest: int

    def taken(self, particle: ParticleFn[T], programs: Programs, number: jax.Array) -> tuple[ParticleFn[T], Programs]:
        """Particle and programs of one chunk."""

        def rows(leaf: jax.Array, axis: int) -> jax.Array:
            full = lax.slice_in_dim(leaf, 0, self.size * self.num, axis=axis)
            apart = full.reshape(*leaf.shape[:axis], self.size, self.num, *leaf.shape[axis + 1 :])
            return lax.dynamic_index_in_dim(apart, number, axis + 1, keepdims=False)

        return _renumbered(particle, lambda datum: number + self.num * datum), self.data.map(rows, programs)

    def rest(self, particle: ParticleFn[T], programs: Programs) -> tuple[ParticleFn[T], Programs]:
        """Those of the data that do not fill a chunk, the last ones."""
        first = self.size * self.num
        rows = lambda leaf, axis: lax.slice_in_dim(leaf, first, None, axis=axis)
        return _renumbered(particle, lambda datum: first + datum), self.data.map(rows, programs)


def _renumbered(particle: ParticleFn[T], number_of: Callable[[Any], Any]) -> ParticleFn[T]:
    """The same particle, at the number of its datum among all data."""

    def of_chunk(programs: Programs, index: Index) -> T:
        return particle(programs, index._replace(datum=number_of(index.datum)))

    return of_chunk


def _in_order(leaf: jax.Array, axis: int) -> jax.Array:
    """Data in their own order, from two axes: place in the chunk, and number of the chunk."""
    return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])
