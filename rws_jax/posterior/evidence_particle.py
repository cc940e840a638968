"""What one particle computes where evidence is asked for: its log-weight, which is NaN where data are NaN."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rws_jax.core.sites import Site, Trace
from rws_jax.core.supports import mask_of_values
from rws_jax.estimators.wake import WeighedDraw, Weighing
from rws_jax.estimators.weights import OfUnits
from rws_jax.programs.density import Units
from rws_jax.programs.program import Index, Programs


@dataclass(frozen=True)
class EvidenceParticle:
    """The log-weight of a particle of wake, shape ``units``; NaN in units with NaN among their data.

    For training NaN lies outside of every support, and such a unit is dead. Its evidence is not zero, but unknown.
    """

    wake: Weighing

    def __call__(self, programs: Programs, index: Index) -> OfUnits:
        """Draw and weigh."""
        return weighed(self.wake, programs, index).log_weights


def weighed(wake: Weighing, programs: Programs, index: Index) -> WeighedDraw:
    """A draw with its log-weights, NaN where data are."""
    draw = wake.weighed_draw(programs, index)
    has_nan = _has_nan(draw.model_run, draw.units)
    return draw._replace(log_weights=jnp.where(has_nan, jnp.nan, draw.log_weights))


def _has_nan(model_run: Trace, units: Units) -> jax.Array:
    """Which units have NaN among what they observe, outside of masks."""
    counts = [units.sum_of(site, _is_nan(site)) for site in model_run.values() if _is_data(site)]
    return sum(counts, jnp.zeros(units.shape)) > 0


def _is_data(site: Site) -> bool:
    is_data = site["type"] == "sample" and site["is_observed"]
    return is_data and jnp.issubdtype(jnp.result_type(site["value"]), jnp.floating)


def _is_nan(site: Site) -> jax.Array:
    """Of an observed site, one or zero for each element of its batch."""
    fn, value = site["fn"], jnp.asarray(site["value"])
    is_nan, scored = jnp.isnan(value), mask_of_values(fn)
    if scored is not None:
        is_nan = is_nan & scored
    return jnp.any(is_nan, axis=tuple(range(value.ndim - fn.event_dim, value.ndim))).astype(float)
