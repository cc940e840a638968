"""Handlers around what a particle computes, for the sites that Python branches on.

A site with ``infer={"branching": True}`` branches: Python has to know its value. Along a branching trace it does, since
the values are constants of the run; where the trace ends, the run stops and hands out what it has drawn there.
"""

from collections.abc import Callable, Iterable

import jax
from jax.core import Tracer
from numpyro.distributions import Distribution

from rws_jax.core.numpyro_internals import Messenger
from rws_jax.core.sites import Site
from rws_jax.core.supports import kind_of_support
from rws_jax.core.trees import is_traced
from rws_jax.execution.branching.errors import (
    check_outside_of_plates,
    fail_endless,
    fail_not_deterministic,
    fail_traced,
)
from rws_jax.execution.branching.trace import BranchingTrace, BranchingValue
from rws_jax.programs.drawing import sampled

MAX_SITES = 10_000  # branching sites on a path: some ten seconds, after which a loop is taken for one without end


class TraceEnded(BaseException):
    """A branching trace has ended at a site, with what was drawn there. No program is to catch this."""

    def __init__(self, name: str, value: jax.Array, fn: Distribution) -> None:
        super().__init__(name)
        self.name, self.value, self.fn = name, value, fn


class UnannotatedBranch(BaseException):
    """A site branches in this program, but not in the one that has drawn it, which has to stop there too."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class BranchHandler(Messenger):
    """Gives branching sites the values of a branching trace.

    Beyond the end of the trace the run stops or, where it `goes_on` un-jitted, draws and writes down what it has drawn.
    """

    def __init__(self, trace: BranchingTrace, also_branching: set[str], *, goes_on: bool = False) -> None:
        self.trace, self.also_branching, self.goes_on = trace, also_branching, goes_on
        self.taken: list[BranchingValue] = []
        self.unknown: list[str] = []  # discrete sites that are not annotated
        self.supports: dict[tuple[str, str], str] = {}  # the kind of support of each latent site, by role and name
        super().__init__()

    def process_message(self, msg: Site) -> None:
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        if "role" in msg and not msg.get("is_data"):
            self.supports[msg["role"], msg["name"]] = kind_of_support(msg["fn"])
        if not (is_branching(msg) or msg["name"] in self.also_branching):
            if msg["fn"].is_discrete:
                self.unknown.append(msg["name"])
            return
        check_outside_of_plates(msg)
        if msg["value"] is None or msg.get("is_drawn"):
            msg["value"] = self.choose(msg)
        elif not is_known(msg):
            drawn = self.drawn(msg["name"])
            if drawn is None:
                raise UnannotatedBranch(msg["name"])
            msg["value"] = drawn  # a constant, which a value that was kept within a support is not

    def choose(self, site: Site) -> jax.Array:
        """The value of the site that branches next."""
        position, name = len(self.taken), site["name"]
        if position < len(self.trace):
            value = self.trace[position]
            if value.name != name:
                fail_not_deterministic(self.trace, f"site {value.name!r}", f"site {name!r}")
            self.taken.append(value)
            return value.array
        drawn = sampled(site)
        if not self.goes_on:
            raise TraceEnded(name, drawn, site["fn"])
        if len(self.taken) == MAX_SITES:
            fail_endless(name, self.taken)
        self.taken.append(BranchingValue.of(name, drawn))
        return drawn

    def drawn(self, name: str) -> jax.Array | None:
        """The value that a site has been given last, or None: a program may run again, for another minibatch."""
        return next((value.array for value in reversed(self.taken) if value.name == name), None)

    def check_ended(self) -> None:
        """The programs have drawn all that they had drawn before."""
        if len(self.taken) < len(self.trace):
            missing = f"site {self.trace[len(self.taken)].name!r}"
            fail_not_deterministic(self.trace, missing, "the end of the program")


class Latents(Messenger):
    """Collects the latent sites of all programs that run within it, by name, and which of them branch in any."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}  # as they were met first, by the program that draws them
        self.dists: dict[str, list[Distribution]] = {}  # of all programs
        self.branching: set[str] = set()
        super().__init__()

    def postprocess_message(self, msg: Site) -> None:
        if msg["type"] == "sample" and "role" in msg and not (msg["is_observed"] or msg.get("is_data")):
            self.sites.setdefault(msg["name"], msg)
            if not is_traced(msg["fn"]):  # else it is of a derivative, and must not be kept
                self.dists.setdefault(msg["name"], []).append(msg["fn"])
            if is_branching(msg):
                self.branching.add(msg["name"])


class KnownValues(Messenger):
    """Gives some sites known values, wherever they are met."""

    def __init__(self, values: Iterable[BranchingValue]) -> None:
        self.values = {value.name: value.array for value in values}
        super().__init__()

    def process_message(self, msg: Site) -> None:
        if msg["type"] == "sample" and not msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


class no_branching(Messenger):
    """Refuses branching sites whose values are not known, as all is compiled at once; calls `when_found` at each."""

    def __init__(self, when_found: Callable[[], None] | None = None) -> None:
        self.when_found = when_found
        super().__init__()

    def process_message(self, msg: Site) -> None:
        of_program = msg["type"] == "sample" and "role" in msg
        if not of_program or msg["is_observed"] or not is_branching(msg):
            return
        if self.when_found is not None:
            check_outside_of_plates(msg)
            self.when_found()
        if not is_known(msg):
            check_outside_of_plates(msg)
            fail_traced(f"branching site {msg['name']!r} of the {msg['role']}")


def is_branching(site: Site) -> bool:
    """Whether a latent site is annotated as one that Python branches on."""
    return bool(site["infer"].get("branching"))


def is_known(site: Site) -> bool:
    """Whether the value of a site, or that of the key that it would be drawn by, is not traced."""
    return not isinstance(site["kwargs"]["rng_key"] if site["value"] is None else site["value"], Tracer)
