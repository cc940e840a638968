"""What the shape of a value must be to that of its distribution, as JAX would broadcast the one against the other."""

from typing import NoReturn

import numpy as np
import numpyro.distributions as dist
from jax import lax

from rws_jax.core.errors import fail
from rws_jax.core.sites import Site, base_distribution

_HINT = "give the value the shape that the distribution draws: x[:, 0] for data of shape (N, 1), or the distribution"
_HINT += " that of the value, by to_event() or by a plate for each axis"


def check_shapes(role: str, site: Site) -> None:
    """Each log density is that of one event, and no size of one is stretched to fit.

    A batch of data may share one distribution, and many distributions a scalar. What may not happen is that one datum
    is scored several times, or as an element of a larger event.
    """
    fn = site["fn"]
    if isinstance(base_distribution(fn), dist.Unit | dist.ImproperUniform):
        return
    shape, own, event_shape = np.shape(site["value"]), tuple(fn.batch_shape), tuple(fn.event_shape)
    num_batch_dims = max(len(shape) - len(event_shape), 0)
    batch = shape[:num_batch_dims]
    if shape[num_batch_dims:] != event_shape:
        _fail(role, site, "does not have the event shape of its distribution", f"event shape {event_shape}")
    padded = (1,) * (len(batch) - len(own)) + own
    if any(size == 1 < wanted for size, wanted in zip(batch[::-1], padded[::-1], strict=False)):
        _fail(role, site, "would be broadcast against its distribution", f"batch shape {own}, or a scalar")
    try:
        whole = lax.broadcast_shapes(batch, own)
    except ValueError:
        _fail(role, site, "does not have the batch shape of its distribution", f"batch shape {own}")
    if whole not in (batch, padded):
        _fail(role, site, "would be broadcast against its distribution", f"batch shape {own}")


def check_within_plates(role: str, site: Site) -> None:
    """In plates, all axes of log densities are plates: what is left over would be scored in each of them."""
    fn, shape = site["fn"], np.shape(site["value"])
    if isinstance(base_distribution(fn), dist.Unit):
        return
    whole = lax.broadcast_shapes(shape[: len(shape) - fn.event_dim], tuple(fn.batch_shape))
    sizes = {frame.dim: frame.size for frame in site["cond_indep_stack"]}
    if sizes and any(size > 1 and axis - len(whole) not in sizes for axis, size in enumerate(whole)):
        plates = tuple(sizes.get(dim, 1) for dim in range(min(sizes), 0))
        hint = "declare what is left over by a plate of its own, or as a part of each event by to_event(); data of"
        hint += " shape (N, 1) in a plate of N are x[:, 0]"
        _fail(role, site, f"has log densities of shape {whole}, wider than its plates", f"log densities {plates}", hint)


def _fail(role: str, site: Site, problem: str, expected: str, hint: str = _HINT) -> NoReturn:
    fn = site["fn"]
    own = f"batch shape {tuple(fn.batch_shape)}, event shape {tuple(fn.event_shape)}"
    fail(
        ValueError,
        f"the value of site {site['name']!r} of the {role} {problem}",
        expected=expected,
        found=f"a value of shape {np.shape(site['value'])}, a distribution of {own}",
        hint=hint,
    )
