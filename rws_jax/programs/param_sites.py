"""The param sites of programs that run within a handler, whichever values they are given."""

from numpyro.distributions import constraints

from rws_jax.core.numpyro_internals import Messenger
from rws_jax.core.sites import Site
from rws_jax.core.trees import is_traced


class ParamSites(Messenger):
    """Collects what is known of param sites: constraint and initial value, of each program once."""

    def __init__(self) -> None:
        self.found: list[Site] = []
        super().__init__()

    def process_message(self, msg: Site) -> None:
        if msg["type"] != "param" or "role" not in msg:
            return
        site = {key: msg[key] for key in ("name", "role", "args", "kwargs")}
        if msg.get("is_held"):
            site["role"] = "model"  # which owns it, and whose values it is held against
        is_new = all((site["role"], site["name"]) != (other["role"], other["name"]) for other in self.found)
        constraint = site["kwargs"].get("constraint", constraints.real)
        if is_new and not is_traced((site["args"], list(vars(constraint).values()))):
            self.found.append(site)
