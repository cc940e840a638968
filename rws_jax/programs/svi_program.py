"""The handler that makes a program one that `SVI` trains."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.core.layers import ProgramFn
from rws_jax.core.numpyro_internals import Messenger
from rws_jax.core.sites import Site, Trace


class svi_program(Messenger):
    """A program as `SVI` trains it: no site is enumerated, and no parameter fixed but by `SVI` itself."""

    def __init__(self, fn: ProgramFn, role: str, warns: bool) -> None:
        self.role, self.warns = role, warns
        self.param_sites: Trace = {}  # of all runs
        self.held_sites: Trace = {}  # the same of those that are another program's
        self._running: list[Site] = []
        self.warned_of: set[str] = set()  # names of sites, each warned of once
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        if msg["type"] == "param":
            msg["value"] = None  # which a handler inside, such as substitute, may have set
        elif msg["type"] == "sample" and msg["infer"].get("enumerate"):
            msg["infer"] = {key: value for key, value in msg["infer"].items() if key != "enumerate"}
            if self.warns and msg["name"] not in self.warned_of:
                self.warned_of.add(msg["name"])
                _warn_of_enumeration(self.role, msg["name"])

    def postprocess_message(self, msg: Site) -> None:
        if msg["type"] == "param":
            self._running.append(msg)

    def __exit__(self, *error: Any) -> None:
        """Keep the shapes of what is a parameter once the program has run; its values may be traced."""
        super().__exit__(*error)
        for site in self._running:
            shapes = jax.tree.map(lambda leaf: np.broadcast_to(0.0, jnp.shape(leaf)), site["value"])
            sites = self.held_sites if site.get("is_held") else self.param_sites
            sites[site["name"]] = site | {"value": shapes}
        self._running.clear()


def _warn_of_enumeration(role: str, name: str) -> None:
    warnings.warn(
        f"site {name!r} of the {role} is annotated for enumeration, but ReweightedWakeSleep draws it like all others."
        " Drop the annotation, or pass strict_enumeration_warning=False.",
        stacklevel=2,
    )
