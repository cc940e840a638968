"""Log-weights in, log evidence out: the bound for growing numbers of particles, and standard errors. Arrays only.

Particles are axis 0, the remaining axes are independent units, ``(particles, *units)``, and all is in nats.
"""

from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from rws_jax.estimators import weights
from rws_jax.estimators.weights import OfUnits, PerParticle
from rws_jax.posterior.samples import estimate

PerSize = Annotated[jax.Array, "(sizes, *units)"]


class EvidenceSummary(NamedTuple):
    """What is known of log evidence from one set of particles; see `summarise`."""

    bounds: PerSize
    standard_errors: PerSize
    effective_sample_size: OfUnits

    @property
    def without_errors(self) -> "EvidenceSummary":
        """The same, of unknown standard errors: those of particles that were resampled."""
        return self._replace(standard_errors=jnp.full_like(self.standard_errors, jnp.nan))


def sizes_up_to(num: int) -> tuple[int, ...]:
    """The powers of ten below a number of particles, and this number."""
    return *(10**power for power in range(len(str(num - 1))) if num > 1), num


@partial(jax.jit, static_argnums=1)
def summarise(log_w: PerParticle, sizes: tuple[int, ...]) -> EvidenceSummary:
    r"""The bound with k particles, for each k of `sizes`: its mean over the K // k disjoint groups of k particles.

    That mean has the expectation of the bound with k particles. Its standard error comes from the spread over groups.
    Where these are fewer than 20 it comes from the weights within each, by the delta method: with errors
    :math:`\mathrm{se}_g` of G groups it is :math:`\sqrt{\sum_g \mathrm{se}_g^2} / G`. To second order the bound with
    all particles lies half the square of its error below log evidence.

    Args:
      log_w: shape ``(particles, *units)``.
      sizes: numbers of particles, none above K.

    Returns:
      Bounds and their standard errors over particles, shape ``(sizes, *units)``, and Kish's effective sample size of
      all particles, shape ``units``.
    """
    pairs = [_of_groups(log_w, size) for size in sizes]
    bounds, errors = (jnp.stack(column) for column in zip(*pairs, strict=True))
    return EvidenceSummary(bounds, errors, weights.summarise(log_w).effective_sample_size)


def _of_groups(log_w: PerParticle, size: int) -> tuple[Any, Any]:
    num_groups = log_w.shape[0] // size
    groups = log_w[: num_groups * size].reshape(num_groups, size, *log_w.shape[1:])
    if size > 1 and num_groups < _FEW_GROUPS:  # the spread of so few would be too small by chance, again and again
        bounds, of_group = estimate.log_evidence(jnp.moveaxis(groups, 1, 0))
        errors = jnp.sqrt(jnp.sum(of_group**2, axis=0)) / num_groups
    else:
        bounds = jax.vmap(weights.bound)(groups)
        errors = bounds.std(axis=0, ddof=1) / jnp.sqrt(num_groups)
    return bounds.mean(axis=0), errors


_FEW_GROUPS = 20
