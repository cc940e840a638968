"""What a program scans over, taken from a run of it: the body as it is written, and what came before it."""

from typing import Any, NamedTuple

from rws_jax.core.layers import ProgramFn
from rws_jax.core.numpyro_internals import SUBSTITUTE_STACK, Messenger, is_cond, scanned
from rws_jax.core.sites import Site, Trace


class Scan(NamedTuple):
    """One `numpyro.contrib.control_flow.scan` of a program, as it was called."""

    role: str  # of the program
    body: ProgramFn
    carry: Any
    xs: Any
    length: int
    reverse: bool
    rng_key: Any  # folded by datum and particle
    inner: list[tuple[str, Any]]  # what `condition` and `substitute` within the program give
    other: list[tuple[str, Any]]  # what further handlers within the program give
    last_carry: Any  # whose types are those of all carries
    sites: Trace  # of the body, as handlers around the scan have not changed them yet; leading axes are steps
    before: frozenset[str]  # sample sites of the program that come before it


class scans(Messenger):
    """Takes note of the scans of programs that run within it, outside of other control flow."""

    def __init__(self) -> None:
        self.found: list[Scan] = []
        self._names: dict[str, set[str]] = {}  # of the sample sites of each program so far
        super().__init__()

    def process_message(self, msg: Site) -> None:
        if msg["type"] == "sample":
            self._names.setdefault(msg["role"], set()).add(msg["name"])
        elif msg["type"] == "control_flow" and not is_cond(msg):
            msg["before"] = frozenset(self._names.get(msg["role"], ()))

    def postprocess_message(self, msg: Site) -> None:
        if "before" not in msg:
            return
        (body, carry, xs, _, reverse), inner = msg["as_written"]
        last_carry, sites = scanned(msg)
        # Handlers around the scan are sent the same messages, and change them.
        sites = {name: dict(site) for name, site in sites.items()}
        found = Scan(
            role=msg["role"],
            body=body,
            carry=carry,
            xs=xs,
            length=msg["args"][3],
            reverse=reverse,
            rng_key=msg["kwargs"]["rng_key"],
            inner=inner,
            other=msg["kwargs"][SUBSTITUTE_STACK],
            last_carry=last_carry,
            sites=sites,
            before=msg["before"],
        )
        self.found.append(found)

    def of(self, role: str) -> list[Scan]:
        """Those of one program."""
        return [scan for scan in self.found if scan.role == role]
