"""What has been compiled of programs that branch, and what is known of their paths."""

import warnings
from collections import Counter, OrderedDict
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.handlers import seed

from rws_jax.one_path import Compiled, Run
from rws_jax.paths import Path, Walk, check_steering, describe, fail_supports, steers
from rws_jax.programs import Call
from rws_jax.sites import Trace
from rws_jax.validation import check_int, fail


class Branching:
    """What has been compiled of some programs, and which of their sites steer."""

    def __init__(self, compile_after: int = 32, max_compiled: int = 1000) -> None:
        hint = "leave it out; it changes no result"
        check_int(compile_after, "compile_after", 0, expected="an int >= 0, a number of particles", hint=hint)
        check_int(max_compiled, "max_compiled", 1, expected="an int >= 1, a number of functions", hint=hint)
        self.compile_after, self.max_compiled = compile_after, max_compiled
        self.is_met = False  # whether there are branching sites
        self.steering: set[str] = set()  # beside those that are annotated in the program that draws them
        self._compiled: OrderedDict[tuple, Compiled] = OrderedDict()  # by kind of run, path and size
        self._sizes: dict[tuple, list[int]] = {}  # of these
        self._num_seen: Counter[tuple] = Counter()  # particles on a path, until it is compiled
        self._supports: dict[tuple[str, str], tuple[str, Path]] = {}
        self._told: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """Count anew."""
        self.paths: set[tuple] = set()
        self.num_unjitted = 0

    def counts(self) -> dict[str, jax.Array]:
        """What the info tells."""
        counts = {"num_paths": len(self.paths), "num_compiled": len(self._compiled), "num_unjitted": self.num_unjitted}
        return {name: jnp.array(count) for name, count in counts.items()}

    def look(self, *runs: Trace) -> None:
        """Whether there are branching sites in these runs of model and guide."""
        for role, run in zip(("model", "guide"), runs, strict=True):
            for site in run.values():
                if steers(site, None):
                    check_steering(role, site)
                    self.is_met = True

    def find(self, run: Run, path: Path, number: int) -> Compiled | None:
        """For at least so many particles on a path; None if too few have come along it to compile it."""
        sizes = self._sizes.get((run.kind, path), [])
        fitting = [size for size in sizes if number <= size <= _MAX_PADDING * number]
        if fitting:
            key = run.kind, path, min(fitting)
            self._compiled.move_to_end(key)
            return self._compiled[key]
        if len(self._num_seen) > _MANY * self.max_compiled:  # rare paths without end
            self._num_seen.clear()
        self._num_seen[run.kind, path] += number
        if not sizes and self._num_seen[run.kind, path] <= self.compile_after:
            return None
        return Compiled(run, path, next(size for size in SIZES if size >= number), self.steering, self.check_supports)

    def keep(self, run: Run, compiled: Compiled) -> None:
        """Once it has been called: an interruption while it is compiled leaves all as it was."""
        key = run.kind, compiled.path, compiled.size
        if key not in self._compiled:
            self._sizes.setdefault(key[:2], []).append(compiled.size)
        self._compiled[key] = compiled
        while len(self._compiled) > self.max_compiled:
            (*place, size), _ = self._compiled.popitem(last=False)
            sizes = self._sizes[*place]
            sizes.remove(size)
            if not sizes:  # the path is rare again
                del self._sizes[*place]
                self._num_seen.pop(tuple(place), None)

    def learn(self, name: str) -> None:
        """A site steers in the program that scores it; what draws it has to stop there."""
        self.steering.add(name)
        self._compiled.clear()
        self._sizes.clear()

    def check_supports(self, walk: Walk) -> None:
        """A site of one name has one kind of values."""
        path = tuple(walk.taken)
        for (role, name), kind in walk.supports.items():
            other_kind, other_path = self._supports.setdefault((role, name), (kind, path))
            if kind != other_kind:
                fail_supports(role, name, (other_kind, kind), (other_path, path))

    def warn_of_values(self, path: Path, name: str, num_values: int, number: int) -> None:
        """A continuous site, say, has as many paths as particles."""
        if num_values == number >= _MANY and name not in self._told:
            self._told.add(name)
            warnings.warn(
                f"branching site {name!r} has drawn {number} different values for {number} particles, on"
                f" {describe(path)}: every particle is a path of its own, and compiled for itself. Branch on a discrete"
                " site.",
                stacklevel=2,
            )


_MAX_PADDING = 16  # times as many particles as there are
_MANY = 50


def branching_of(calls: tuple[Call | None, ...], options: Any) -> Branching:
    """What is known from last time, or nothing yet."""
    for call in calls:
        if call is not None and not isinstance(call.program, seed):
            fail(
                ValueError,
                f"the {call.role} has branching sites, and handlers around numpyro.handlers.seed",
                expected="programs seeded outermost, seed(handler(program), rng_key)",
                found=f"{type(call.program).__name__} outermost",
                hint="paths are compiled for all keys; swap the handlers, or pass vectorize_particles=False",
            )
    branching = options.layout.branching
    if branching is None:
        try:
            branching = _known(tuple(call and call.program.fn for call in calls), options)
        except TypeError:  # what cannot be hashed is compiled each time
            branching = Branching()
    branching.is_met = True
    return branching


@lru_cache(maxsize=16)
def _known(programs: tuple, options: Any) -> Branching:
    return Branching()


def check_by_paths(options: Any) -> None:
    """What goes with branching sites."""
    expected = None
    if getattr(options, "gradient", "score") == "dreg":
        expected, found = "gradient='score': a branch has no derivative", "gradient='dreg'"
    elif options.layout.particle_sharding is not None:
        expected, found = "particle_sharding=None: each path runs on one device", "a sharding of particles"
    if expected is not None:
        fail(
            ValueError,
            "programs have branching sites, and an option does not go with these",
            expected=expected,
            found=found,
            hint="leave the option out, or branch by numpyro.contrib.control_flow.cond or handlers.mask instead",
        )


# Of groups: from eight on, as few more particles cost little, and every size is compiled.
SIZES = tuple(8 * 4**power for power in range(14))
