"""All that the package uses of NumPyro and that NumPyro does not document; nothing else touches it.

A test holds each of these to what it is used for, so that a new release of NumPyro that changes one is named by it.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from numpyro.contrib.control_flow.cond import _subs_wrapper as value_in_cond
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.contrib.control_flow.scan import _subs_wrapper as value_in_scan
from numpyro.distributions import Distribution, MaskedDistribution
from numpyro.handlers import condition
from numpyro.primitives import _PYRO_STACK as ACTIVE_HANDLERS
from numpyro.primitives import Messenger, plate

__all__ = ["SUBSTITUTE_STACK", "ActivePlate", "Messenger", "active_plates", "comes_out_of_control_flow", "is_cond"]
__all__ += ["is_conditioned"]
__all__ += ["mask_of", "own_validation", "scanned", "value_in_cond", "value_in_scan"]

# The argument by which scan and cond pass the handlers of `condition` and `substitute` on into their bodies.
SUBSTITUTE_STACK = "substitute_stack"


class ActivePlate(NamedTuple):
    """A plate that a statement is in; its indices are fewer than its size if it is subsampled."""

    name: str
    dim: int
    size: int
    indices: Any


def is_cond(site: dict[str, Any]) -> bool:
    """Whether a message of type ``control_flow`` is of `cond`, and not of `scan`."""
    return site["fn"] is cond_wrapper


def comes_out_of_control_flow(site: dict[str, Any]) -> bool:
    """Whether a site was run in the body of scan or cond, and is sent once more for handlers outside of it."""
    return bool(site.get("_control_flow_done"))


def scanned(site: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The last carry of a scan, whose message this is, and the sites of its body; leading axes are steps."""
    (_, _, carry), (sites, _) = site["value"]
    return carry, sites.trace


def mask_of(fn: MaskedDistribution) -> Any:
    """The mask that a distribution was given by ``fn.mask(...)`` or `numpyro.handlers.mask`."""
    return fn._mask


def own_validation(fn: Distribution) -> Callable[[Any], Any] | None:
    """How a distribution of this class tests values, where that is not by its support; None where it is.

    The bounds of an interval-censored value, say, are tested one by one.
    """
    if type(fn)._validate_sample is Distribution._validate_sample:
        return None

    def inside(value: Any) -> Any:
        with warnings.catch_warnings():  # of values outside, which are what is asked for
            warnings.simplefilter("ignore")
            return fn._validate_sample(value)

    return inside


def active_plates() -> list[ActivePlate]:
    """The plates around the statement that runs, whatever their names and records have become."""
    plates = [handler for handler in ACTIVE_HANDLERS if isinstance(handler, plate)]
    return [ActivePlate(handler.name, handler.dim, handler.size, handler._indices) for handler in plates]


def is_conditioned(site: dict[str, Any]) -> bool:
    """Whether the value of the sample site that is processed comes from `numpyro.handlers.condition`.

    The name that the handler knows may have been another one.
    """
    for handler in ACTIVE_HANDLERS:
        if isinstance(handler, condition):
            given = handler.data or {}
            if given.get(site["name"]) is site["value"]:
                return True
            # By identity, as `scope` may have changed the name since; equal integers of Python are one object anywhere.
            if not isinstance(site["value"], int) and any(value is site["value"] for value in given.values()):
                return True
            if handler.condition_fn is not None and handler.condition_fn(site) is not None:
                return True
    return False
