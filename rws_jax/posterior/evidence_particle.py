"""What one particle computes where evidence is asked for: its log-weight, which is NaN where data are NaN."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpyro

from rws_jax.core.sites import Site, Trace
from rws_jax.estimators.wake import WakeParticle
from rws_jax.estimators.weights import OfUnits
from rws_jax.programs.density import Units
from rws_jax.programs.program import Index, Programs


@dataclass(frozen=True)
class EvidenceParticle:
    """The log-weight of a particle of wake, shape ``units``; NaN in units with NaN among their data.

    For training NaN lies outside of every support, and such a unit is dead. Its evidence is not zero, but unknown.
    """

    wake: WakeParticle

    def __call__(self, programs: Programs, index: Index) -> OfUnits:
        """Draw and weigh."""
        draws = self.wake.draw(programs, index)
        runs = self.wake.run(programs, index, draws)
        scored = self.wake.scored(runs, draws)
        has_nan = _has_nan(runs.model, scored.units)
        if index.alone:  # before weights are taken: a particle alone was proposed as a whole
            scored, has_nan = scored.joint(), jnp.any(has_nan)
        return jnp.where(has_nan, jnp.nan, scored.log_weights)


def _has_nan(model_run: Trace, units: Units) -> jax.Array:
    """Which units have NaN among what they observe, outside of masks."""
    counts = [units.sum(_is_nan(site)) for site in model_run.values() if _is_data(site)]
    return sum(counts, jnp.zeros(units.shape)) > 0


def _is_data(site: Site) -> bool:
    is_data = site["type"] == "sample" and site["is_observed"] and not site.get("is_constant")
    return is_data and jnp.issubdtype(jnp.result_type(site["value"]), jnp.floating)


def _is_nan(site: Site) -> jax.Array:
    """Of an observed site, one or zero for each element of its batch; what is masked has a log density of zero."""
    fn, value = site["fn"], jnp.asarray(site["value"])
    with numpyro.validation_enabled(False):
        log_prob = fn.log_prob(value)
    is_nan = jnp.any(jnp.isnan(value), axis=tuple(range(value.ndim - fn.event_dim, value.ndim)))
    return jnp.where(is_nan & jnp.isnan(log_prob), 1.0, 0.0)
