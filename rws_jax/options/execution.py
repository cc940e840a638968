"""How particles run: options that change no result, and what a datum is."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from jax.sharding import NamedSharding

from rws_jax.checks import options as checks
from rws_jax.checks.arguments import check_flag, check_int
from rws_jax.core.errors import fail
from rws_jax.execution.adaptive import Adaptive
from rws_jax.execution.all_paths import AllPaths
from rws_jax.execution.branching.path_cache import PathCache
from rws_jax.execution.by_paths import ByPaths
from rws_jax.execution.chunked import Chunked
from rws_jax.execution.data import Axes, Data
from rws_jax.execution.data_chunks import DataChunks
from rws_jax.execution.devices import replicate
from rws_jax.execution.executor import Executor
from rws_jax.execution.one_by_one import OneByOne
from rws_jax.execution.vectorized import Vectorized


@dataclass(frozen=True)
class ExecutionOptions:
    """How particles run, which changes no result, and what a datum is; see `wake_phi_loss`."""

    vectorize_particles: bool = field(
        default=True,
        metadata={"help": "whether particles are mapped over; if not, each runs on its own and un-jitted."},
    )
    chunk_size: int | None = field(
        default=None, metadata={"help": "particles, or dreams, in memory at a time; None for all at once."}
    )
    particle_sharding: NamedSharding | None = field(
        default=None, metadata={"help": "over which devices they are spread."}
    )
    data_axes: Axes = field(
        default=None, metadata={"help": "axes of the data in `args`, for programs of one datum; see `wake_phi_loss`."}
    )
    data_chunk_size: int | None = field(
        default=None, metadata={"help": "data in memory at a time, where `data_axes` says what they are; None for all."}
    )

    def __post_init__(self) -> None:
        check_flag(self.vectorize_particles, "vectorize_particles")
        checks.check_data_axes(self.data_axes)
        if self.chunk_size is not None:
            expected = "an int >= 1, the number of particles in memory at a time, or None for all"
            hint = "pass chunk_size=100, say; results do not depend on it"
            check_int(self.chunk_size, "chunk_size", 1, expected=expected, hint=hint)
            self._check_vectorized("chunk_size", self.chunk_size)
        if self.data_chunk_size is not None:
            expected = "an int >= 1, the number of data in memory at a time, or None for all"
            hint = "pass data_chunk_size=32, say; results do not depend on it"
            check_int(self.data_chunk_size, "data_chunk_size", 1, expected=expected, hint=hint)
            self._check_vectorized("data_chunk_size", self.data_chunk_size)
            checks.check_has_data(self.data_axes, self.data_chunk_size)
        if self.particle_sharding is not None:
            checks.check_sharding(self.particle_sharding)
            self._check_vectorized("particle_sharding", self.particle_sharding.spec)
            self._check_divides(self.chunk_size, "chunk_size")

    @property
    def one_by_one(self) -> bool:
        """Whether each particle runs on its own, un-jitted."""
        return not self.vectorize_particles

    @property
    def data(self) -> Data:
        """Where arguments have the axis of data."""
        return Data(self.data_axes)

    def with_argument(self, num_args: int, axis: int) -> "ExecutionOptions":
        """The same for programs of one positional argument more, which has the data along `axis`, if data have one."""
        if self.data_axes is None:
            return self
        axes = self.data_axes if isinstance(self.data_axes, tuple) else (self.data_axes,) * num_args
        return replace(self, data_axes=(*axes, axis))

    def of_all_data(self) -> "ExecutionOptions":
        """The same for programs of which the datum has been chosen."""
        return replace(self, data_axes=None, data_chunk_size=None)

    def in_groups(self, size: int) -> "ExecutionOptions":
        """The same for so many particles in place of one."""
        return self if self.chunk_size is None else replace(self, chunk_size=self.chunk_size * size)

    def of_dreams(self, num: int, num_data: int | None) -> "ExecutionOptions":
        """The same for `num` particles of each datum, where chunks are of dreams with so many particles each."""
        size = self.chunk_size
        if size is not None and num_data is not None:
            size = max(1, size * num // num_data)
        return replace(self, chunk_size=size and min(size, num), particle_sharding=None)

    def replicated(self, state: Any, arguments: Any) -> Any:
        """A state on all devices that particles of these arguments run on."""
        return replicate(state, arguments, self.particle_sharding)

    def executor(self, cache: PathCache | None = None) -> Executor:
        """What runs particles so; a cache of compiled paths, if programs branch and the caller keeps one."""
        if self.one_by_one:
            return OneByOne(self.data)
        mapped = Vectorized(self.data, self.particle_sharding)
        at_once = mapped if self.chunk_size is None else Chunked(mapped, self.chunk_size)
        at_once = at_once if self.data_chunk_size is None else DataChunks(at_once, self.data_chunk_size)
        by_paths = ByPaths(self.data, self.chunk_size, cache)
        return Adaptive(at_once, AllPaths(at_once, cache or PathCache()), by_paths, self.particle_sharding)

    def check_number(self, value: Any, option: str, minimum: int) -> None:
        """Check that a number of particles is an int of at least `minimum`, and divides over the devices."""
        why = " (with one particle every weight is 1, and wake-phi learns nothing)" if minimum > 1 else ""
        hint = f"pass {option}=10, say; effective sample sizes in the info tell whether more are needed"
        check_int(value, option, minimum, expected=f"an int >= {minimum}{why}", hint=hint)
        self._check_divides(value, option)

    def _check_divides(self, number: int | None, option: str) -> None:
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
