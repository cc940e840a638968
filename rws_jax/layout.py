"""How programs run: on all data or one, particles mapped over or one by one, at once or in chunks, on many devices."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding

from rws_jax import devices
from rws_jax.validation import check_flag, check_int, describe, fail


@dataclass(frozen=True)
class Layout:
    """Options of where particles run, which change no result, and of what a datum is; see `wake_phi_loss`."""

    vectorize_particles: bool = True
    chunk_size: int | None = None
    particle_sharding: NamedSharding | None = None
    data_axes: Any = None
    branching: Any = field(default=None, compare=False)  # what is compiled of programs that branch; `make_step`'s own

    def __post_init__(self) -> None:
        check_flag(self.vectorize_particles, "vectorize_particles")
        _check_data_axes(self.data_axes)
        if self.chunk_size is not None:
            expected = "an int >= 1, the number of particles in memory at a time, or None for all"
            hint = "pass chunk_size=100, say; results do not depend on it"
            check_int(self.chunk_size, "chunk_size", 1, expected=expected, hint=hint)
            self._check_vectorized("chunk_size", self.chunk_size)
        if self.particle_sharding is not None:
            _check_sharding(self.particle_sharding)
            self._check_vectorized("particle_sharding", self.particle_sharding.spec)
            self.check_divides(self.chunk_size, "chunk_size")

    @property
    def runs_by_paths(self) -> bool:
        """Whether programs are known to branch in Python, and are to be compiled all the same."""
        return self.vectorize_particles and self.branching is not None and self.branching.is_met

    @property
    def maps_particles(self) -> bool:
        """Whether all particles run as one, so that all have the same sites."""
        return self.vectorize_particles and not self.runs_by_paths

    def size_of_chunks(self, num_particles: int) -> int | None:
        """None if all particles are one chunk."""
        return self.chunk_size if self.chunk_size is not None and self.chunk_size < num_particles else None

    def indices(self, num_particles: int) -> jax.Array | range:
        """Of all particles, in the form that says how they run; see `rws_jax.particles`."""
        return self.spread(jnp.arange(num_particles)) if self.vectorize_particles else range(num_particles)

    def spread(self, indices: jax.Array) -> jax.Array:
        """The same indices, each device running its part of them."""
        if self.particle_sharding is None:
            return indices
        return lax.with_sharding_constraint(indices, devices.automatic_sharding(self.particle_sharding))

    def check_divides(self, number: int | None, option: str) -> None:
        """Each device has as many particles as its neighbour."""
        if self.particle_sharding is None or number is None:
            return
        axes = self.particle_sharding.spec[0]
        sizes = self.particle_sharding.mesh.shape
        num_devices = math.prod(sizes[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)))
        if number % num_devices:
            fail(
                ValueError,
                f"option {option!r} does not divide over the devices of option 'particle_sharding'",
                expected=f"a multiple of {num_devices}, the size of mesh axis {axes!r}",
                found=f"{number}",
                hint=f"pass {option}={num_devices * -(-number // num_devices)}",
            )

    def _check_vectorized(self, option: str, value: Any) -> None:
        if not self.vectorize_particles:
            fail(
                ValueError,
                f"options {option!r} and 'vectorize_particles' do not go together",
                expected=f"{option}=None with vectorize_particles=False, where particles run one by one",
                found=f"{option}={value}, vectorize_particles=False",
                hint="leave out one of them",
            )


def _check_data_axes(value: Any) -> None:
    """An axis, or one or None for each argument."""
    is_axis = lambda axis: isinstance(axis, int) and not isinstance(axis, bool)
    axes = value if isinstance(value, tuple) else (value,)
    if value is not None and not all(is_axis(axis) or (axis is None and isinstance(value, tuple)) for axis in axes):
        fail(
            TypeError,
            "option 'data_axes' has the wrong type",
            expected="an int, a tuple of an int or None for each positional argument, or None",
            found=describe(value),
            hint="data_axes=0 for programs of one datum, given arrays with a datum in each row",
        )


def _check_sharding(value: Any) -> None:
    axes = value.spec[0] if isinstance(value, NamedSharding) and len(value.spec) == 1 else None
    names = axes if isinstance(axes, tuple) else (axes,)
    if not all(isinstance(name, str) for name in names) or not isinstance(value.mesh, Mesh):
        fail(
            TypeError,
            "option 'particle_sharding' is not a sharding of particles",
            expected="a jax.sharding.NamedSharding that names the axis of a mesh",
            found=f"{value}" if isinstance(value, NamedSharding) else describe(value),
            hint="particle_sharding=NamedSharding(mesh, PartitionSpec('particles')), for a mesh with such an axis",
        )
