"""What one particle computes where evidence is asked for: its log densities, and NaN where data are NaN."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpyro

from rws_jax.core.sites import Site, Trace
from rws_jax.estimators.scored import Scored
from rws_jax.estimators.wake import WakeParticle
from rws_jax.programs.density import Units
from rws_jax.programs.program import Index, Programs


@dataclass(frozen=True)
class EvidenceParticle:
    """A particle of wake; a unit with NaN among its data has log densities NaN.

    For training NaN lies outside of every support, and such a unit is dead. Its evidence is not zero, but unknown.
    """

    wake: WakeParticle

    def __call__(self, programs: Programs, index: Index) -> Scored:
        """Draw and score."""
        draws = self.wake.draw(programs, index)
        runs = self.wake.run(programs, index, draws)
        scored = self.wake.score_runs(runs, draws)
        has_nan = _has_nan(runs.model, scored.units)
        log_p, log_q = (jnp.where(has_nan, jnp.nan, log_density) for log_density in (scored.log_p, scored.log_q))
        return replace(scored, log_p=log_p, log_q=log_q)


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
