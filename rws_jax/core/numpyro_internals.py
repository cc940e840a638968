"""All that the package uses of NumPyro and that NumPyro does not document; nothing else touches it.

A test holds each of these to what it is used for, so that a new release of NumPyro that changes one is named by it.
"""

from typing import Any

from numpyro.contrib.control_flow.cond import _subs_wrapper as value_in_cond
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.contrib.control_flow.scan import _subs_wrapper as value_in_scan
from numpyro.distributions import MaskedDistribution
from numpyro.primitives import Messenger

__all__ = ["SUBSTITUTE_STACK", "Messenger", "comes_out_of_control_flow", "is_cond", "mask_of"]
__all__ += ["value_in_cond", "value_in_scan"]

# The argument by which scan and cond pass the handlers of `condition` and `substitute` on into their bodies.
SUBSTITUTE_STACK = "substitute_stack"


def is_cond(site: dict[str, Any]) -> bool:
    """Whether a message of type ``control_flow`` is of `cond`, and not of `scan`."""
    return site["fn"] is cond_wrapper


def comes_out_of_control_flow(site: dict[str, Any]) -> bool:
    """Whether a site was run in the body of scan or cond, and is sent once more for handlers outside of it."""
    return bool(site.get("_control_flow_done"))


def mask_of(fn: MaskedDistribution) -> Any:
    """The mask that a distribution was given by ``fn.mask(...)`` or `numpyro.handlers.mask`."""
    return fn._mask
