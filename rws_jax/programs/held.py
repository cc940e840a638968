"""Parameters that a program reads and does not own: a guide may read those of the model."""

from typing import Any

import jax
from jax import lax

from rws_jax.core.numpyro_internals import Messenger
from rws_jax.core.sites import Site
from rws_jax.core.trees import is_float


class held(Messenger):
    """Marks the param sites of the program inside as the model's, which this program reads as constants.

    A guide that is made of such a program is given theta at these sites. They belong to the model: they are neither
    among phi nor initialised, checked for or updated with it, and nothing that is computed of them has a gradient.

    Example:
      >>> import jax, numpyro
      >>> from numpyro.handlers import substitute
      >>> from rws_jax.programs.held import held
      >>> def location(x):
      ...     return x + held(numpyro.param)("mu", 0.0)
      >>> jax.grad(lambda mu: substitute(location, {"mu": mu})(1.0))(2.0).item()
      0.0
    """

    def process_message(self, msg: Site) -> None:
        if msg["type"] == "param":
            msg["is_held"] = True

    def postprocess_message(self, msg: Site) -> None:
        if msg["type"] == "param":
            # Removes the gradient of the guide's losses with respect to theta, which the model alone owns. This handler
            # is the innermost, so the value is the one that the program sees, whoever gave it.
            msg["value"] = jax.tree.map(_constant, msg["value"])


def _constant(leaf: Any) -> Any:
    """The same number without its gradient; keys and integers have none."""
    return lax.stop_gradient(leaf) if is_float(leaf) else leaf
