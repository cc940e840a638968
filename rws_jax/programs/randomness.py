"""The randomness of one particle of one datum."""

from functools import reduce
from typing import Any

import jax

from rws_jax.checks.sites import fail_unseeded
from rws_jax.core.keys import plain
from rws_jax.core.layers import ProgramFn
from rws_jax.core.numpyro_internals import Messenger
from rws_jax.core.site_functions import at_site
from rws_jax.core.sites import Site
from rws_jax.programs.program import Index


class randomness(Messenger):
    """Gives a seeded program the randomness of one particle: every key is folded with the particle's index.

    Plates keep their key, so that all particles see the same minibatch. A program of one datum among many has its keys
    folded with the datum's index before, all of them. Sites in inner plates fold the number of a local particle, if
    there is one: also in the bodies of scan and cond, by `given_values`.
    """

    def __init__(self, fn: ProgramFn | None, role: str, index: Index) -> None:
        self.role, self.index = role, index
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        if msg["type"] not in ("sample", "plate", "prng_key", "control_flow") or msg["value"] is not None:
            return
        if msg.get("is_given"):  # and needs no key
            return
        rng_key = msg["kwargs"]["rng_key"]
        if rng_key is None:
            where = f"{msg['type']} site {msg['name']!r}" if "name" in msg else f"a {msg['type']} statement"
            fail_unseeded(self.role, where)
        in_body = msg["type"] == "control_flow" or msg.get("is_of_site")  # whose sites fold numbers of their own
        numbers = [] if self.index.datum is None else [self.index.datum]
        if msg["type"] != "plate" and not (in_body and self.index.local is not None):
            numbers.append(self.index.number_in(msg.get("cond_indep_stack", ())))
        folded = _folded if msg["type"] == "control_flow" else _plain_folded  # scans split theirs
        msg["kwargs"]["rng_key"] = folded(rng_key, numbers)


@at_site
def _folded(rng_key: Any, numbers: list[Any]) -> Any:
    return reduce(jax.random.fold_in, numbers, rng_key)


@at_site
def _plain_folded(rng_key: Any, numbers: list[Any]) -> Any:
    return plain(_folded(rng_key, numbers))
