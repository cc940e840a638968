"""Paths: what programs that branch in Python have drawn at the sites that steer them, and one run along a path.

A site with ``infer={"branching": True}`` steers: Python has to know its value. On a path it does, since the values are
constants of the run; where the path ends, the run stops and hands out what it has drawn there.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.sites import Site, Trace, latent_sites
from rws_jax.supports import kind_of_support
from rws_jax.validation import fail


class Choice(NamedTuple):
    """A steering site and its value, hashable."""

    name: str
    value: Any  # a Python number, or tuples of them
    dtype: str

    @classmethod
    def of(cls, name: str, value: Any) -> "Choice":
        value = np.asarray(value)
        return cls(name, _frozen(value.tolist()), str(value.dtype))

    @property
    def array(self) -> jax.Array:
        return jnp.asarray(self.value, self.dtype)


Path = tuple[Choice, ...]
DEFENDS = "(defensive)"  # the choice between guide and defensive guide, as a step of a path


def describe(path: Iterable[Choice]) -> str:
    """A path as messages tell it."""
    values = ", ".join(f"{choice.name}={choice.value}" for choice in path)
    return f"the path {values}" if values else "the empty path, before any branching site"


class SteersError(TypeError):
    """A steering site is met where all is compiled at once."""


class Stop(BaseException):
    """A path has ended at a steering site, with what was drawn there. No program is to catch this."""

    def __init__(self, name: str, value: Any) -> None:
        super().__init__(name)
        self.name, self.value = name, value


class Unplanned(BaseException):
    """A site steers in this program, but not in the one that has drawn it, which has to stop there too."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Walk:
    """One run along a path, and beyond its end: there it stops or, un-jitted, goes on and writes down where."""

    def __init__(self, path: Path, steering: set[str], *, goes_on: bool = False) -> None:
        self.path, self.steering, self.goes_on = path, steering, goes_on
        self.taken: list[Choice] = []
        self.unknown: list[str] = []  # discrete sites that do not steer
        self.supports: dict[tuple[str, str], str] = {}  # by role and site

    def choose(self, name: str, draw: Callable[[], Any]) -> Any:
        """The value at a steering site."""
        position = len(self.taken)
        if position < len(self.path):
            choice = self.path[position]
            if choice.name != name:
                _fail_not_deterministic(self.path, f"site {choice.name!r}", f"site {name!r}")
            self.taken.append(choice)
            return choice.array
        value = draw()
        if not self.goes_on:
            raise Stop(name, value)
        self.taken.append(Choice.of(name, value))
        return value

    def value(self, name: str) -> Any:
        """Of a site on the path that has been met, or None."""
        return next((choice.array for choice in self.taken if choice.name == name), None)

    def pass_by(self, site: Site) -> None:
        """A site that does not steer, though Python may be about to branch on it."""
        if site["type"] == "sample" and not site["is_observed"] and site["fn"].is_discrete:
            self.unknown.append(site["name"])

    def note(self, role: str, run: Trace) -> None:
        """What kinds of values the latent sites of a run have."""
        for name, site in latent_sites(run).items():
            self.supports[role, name] = kind_of_support(site["fn"])

    def check_ended(self) -> None:
        """The program has drawn all that it had drawn before."""
        if len(self.taken) < len(self.path):
            _fail_not_deterministic(self.path, f"site {self.path[len(self.taken)].name!r}", "the end of the program")


class Pinned(Walk):
    """All of some sites have known values, wherever they are met."""

    def __init__(self, choices: Iterable[Choice]) -> None:
        self._values = {choice.name: choice.array for choice in choices}
        super().__init__((), set(self._values))

    def choose(self, name: str, draw: Callable[[], Any]) -> Any:
        return self._values[name] if name in self._values else draw()

    def value(self, name: str) -> Any:
        return self._values.get(name)


def steers(site: Site, walk: Walk | None) -> bool:
    """Whether Python has to know the value of a site."""
    if site["type"] != "sample" or site["is_observed"]:
        return False
    return bool(site["infer"].get("branching")) or (walk is not None and site["name"] in walk.steering)


def check_steering(role: str, site: Site) -> None:
    """Python can branch for one datum at a time."""
    wide = [frame for frame in site["cond_indep_stack"] if frame.size > 1]
    if wide:
        fail(
            ValueError,
            f"branching site {site['name']!r} of the {role} is in plate {wide[0].name!r}, and Python takes one branch",
            expected="branching sites outside of plates",
            found=f"plate {wide[0].name!r} of size {wide[0].size}",
            hint="write the programs for a single datum, without the plate, and pass data_axes=0",
        )


def fail_located(error: Exception, path: Path) -> NoReturn:
    """An error of the package, with the path that it is of."""
    if "\n  expected:" in str(error) and " path" not in str(error):
        problem, rest = str(error).split("\n", 1)
        raise type(error)(f"{problem}, on {describe(path)}\n{rest}") from error
    error.add_note(f"on {describe(path)}")
    raise error


def fail_supports(role: str, name: str, kinds: tuple[str, str], paths: tuple[Path, Path]) -> NoReturn:
    """One name for different things."""
    fail(
        ValueError,
        f"latent site {name!r} of the {role} has different supports on different paths",
        expected=f"{kinds[0]}, as on {describe(paths[0])}",
        found=f"{kinds[1]} on {describe(paths[1])}",
        hint="give sites of different kinds different names",
    )


def fail_unannotated(error: Exception, names: list[str], path: Path | None = None) -> NoReturn:
    """Python branches on what it does not know."""
    which = f"the value of site {' or '.join(map(repr, names))}" if names else "a value that is known at run time only"
    fail(
        TypeError,
        f"model or guide cannot be compiled: Python branches on {which}",
        expected="Python to branch on sites with infer={'branching': True} and on static values alone",
        found=str(error).split("\n")[0][:200] + ("" if path is None else f" on {describe(path)}"),
        hint="annotate the site so in model and guide, or branch by numpyro.contrib.control_flow.cond or handlers.mask,"
        " or pass vectorize_particles=False; bind flags and sizes by functools.partial(model, ...)",
    )


def fail_traced(found: str) -> NoReturn:
    """Paths are compiled one by one, by who knows the values."""
    fail(
        SteersError,
        "programs have branching sites, but the call is traced by jit, scan or vmap",
        expected="a call outside of JAX transformations other than grad: each path is compiled by itself",
        found=found,
        hint="call it in a Python loop, or by rws_jax.fit, one loss at a time; to compile all at once, branch by"
        " numpyro.contrib.control_flow.cond or handlers.mask instead",
    )


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _fail_not_deterministic(path: Path, expected: str, found: str) -> NoReturn:
    fail(
        ValueError,
        f"a program is not deterministic given its sites: it took another way on {describe(path)}",
        expected=f"{expected} next, as in the run before",
        found=found,
        hint="Python may branch on sites with infer={'branching': True} and on constants, not on other randomness, nor"
        " on what other runs leave behind",
    )
