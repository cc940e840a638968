"""The keys of one run of a program: `numpyro.handlers.seed` that computes those that are used."""

from collections.abc import Iterable
from typing import Any

import jax
from numpyro.handlers import seed

from rws_jax.core.layers import ProgramFn
from rws_jax.core.site_functions import at_site
from rws_jax.core.sites import Site


class keys(seed):
    """NumPyro's `seed`, for one run. In a run that does not draw, sample sites take a key each, which is not computed.

    What asks for a key after them, `numpyro.prng_key` say, is given the one that it has in a run that draws.
    """

    stateful = True

    def __init__(self, fn: ProgramFn, rng_key: jax.Array, hide_types: Iterable[str], *, draws: bool) -> None:
        super().__init__(fn, rng_key, list(hide_types))
        self.draws, self.num_skipped = draws, 0

    def process_message(self, msg: Site) -> None:
        needs_none = msg["type"] not in ("sample", "prng_key", "plate", "control_flow") or msg["value"] is not None
        if needs_none or msg["type"] in self.hide_types or msg["kwargs"]["rng_key"] is not None:
            return
        if msg["type"] == "sample" and not self.draws:
            msg["is_given"] = True
            self.num_skipped += 1
            return
        for _ in range(self.num_skipped + 1):
            self.rng_key, msg["kwargs"]["rng_key"] = _split(self.rng_key)
        self.num_skipped = 0


@at_site
def _split(rng_key: Any) -> tuple[Any, Any]:
    first, second = jax.random.split(rng_key)
    return first, second
