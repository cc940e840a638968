"""What one particle computes where evidence is asked for: its log-weight, which is NaN where data are NaN."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rws_jax.core.sites import Site, Trace
from rws_jax.core.supports import mask_of_values
from rws_jax.estimators.scored import Scored
from rws_jax.estimators.wake import WakeParticle, WakeRuns
from rws_jax.estimators.weights import OfUnits
from rws_jax.programs.density import Units
from rws_jax.programs.program import Index, Programs
from rws_jax.programs.run import Draws


@dataclass(frozen=True)
class EvidenceParticle:
    """The log-weight of a particle of wake, shape ``units``; NaN in units with NaN among their data.

    For training NaN lies outside of every support, and such a unit is dead. Its evidence is not zero, but unknown.
    """

    wake: WakeParticle

    def __call__(self, programs: Programs, index: Index) -> OfUnits:
        """Draw and weigh."""
        draws = self.wake.draw(programs, index)
        return weighed(self.wake, self.wake.run(programs, index, draws), draws, index)[0]


def weighed(wake: WakeParticle, runs: WakeRuns, draws: Draws, index: Index) -> tuple[OfUnits, Units]:
    """Log-weights of a draw, NaN where data are, and the units that they are of."""
    scored: Scored = wake.scored(runs, draws)
    has_nan = _has_nan(runs.model, scored.units)
    if index.alone:  # before weights are taken: a particle alone was proposed as a whole
        scored, has_nan = scored.joint(), jnp.any(has_nan)
    return jnp.where(has_nan, jnp.nan, scored.log_weights), scored.units


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
