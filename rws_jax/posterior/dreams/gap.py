"""What `simulation_gap` returns: ranks of real data among dreams, and a summary in words."""

import math
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import numpy as np

from rws_jax.posterior.dreams import p_values

_LEVEL = 0.01  # of the p-values that are counted in words


_ARRAYS = ["p_values", "ess_p_values", "log_evidence", "effective_sample_size"]
_ARRAYS += ["dreamt_log_evidence", "dreamt_effective_sample_size"]


@partial(jax.tree_util.register_dataclass, data_fields=_ARRAYS, meta_fields=["max_ess", "exchangeable", "guide_reads"])
@dataclass(frozen=True, repr=False)
class SimulationGap:
    """How real data rank among dreams of the model, unit by unit; arrays of NumPy, log evidence in nats.

    If data come from the model with these parameters, p-values are uniform, for every guide that was not trained on
    these very data: one that was makes them too large. Small ones of `p_values` belong to data that are less likely
    than almost all dreams; small ones of `ess_p_values` to data that the guide explains worse than almost all dreams,
    which it has been trained on.

    Attributes:
      p_values: of log evidence, low being unlike; shape ``units``. NaN where data or log-weights are, and where all
        dreams have weight zero, as of a unit with a covariate that is NaN.
      ess_p_values: of the effective sample size, likewise.
      log_evidence: of the real data, by the importance-weighted bound; shape ``units``.
      effective_sample_size: Kish's, of the real data; shape ``units``.
      dreamt_log_evidence: the same of dreams, shape ``(simulations, *units)``.
      dreamt_effective_sample_size: the same of dreams, shape ``(simulations, *units)``.
      max_ess: how many particles each unit had, real or dreamt.
      exchangeable: whether each unit was compared with the dreams of all.
      guide_reads: whether the guide reads data; if not, and it was fitted to some, none of this means anything.
    """

    p_values: np.ndarray
    ess_p_values: np.ndarray
    log_evidence: np.ndarray
    effective_sample_size: np.ndarray
    dreamt_log_evidence: np.ndarray
    dreamt_effective_sample_size: np.ndarray
    max_ess: int
    exchangeable: bool
    guide_reads: bool = True

    @cached_property
    def order(self) -> np.ndarray:
        """Indices of units, the most unlike first: by p-value, then by how far below its dreams log evidence is.

        Where units have several axes they are numbered in the order of ``numpy.ravel``.
        """
        dreamt = self.dreamt_log_evidence.reshape(-1, 1) if self.exchangeable else self.dreamt_log_evidence
        dreamt = dreamt.reshape(len(dreamt), -1)
        distance = p_values.standardised(self.log_evidence.ravel(), dreamt)
        return np.lexsort((distance, self.p_values.ravel()))

    def __repr__(self) -> str:
        if not isinstance(self.p_values, np.ndarray | np.generic):  # inside of a function of JAX that maps over trees
            return f"SimulationGap(p_values={self.p_values})"
        num, num_dreams = self.p_values.size, len(self.dreamt_log_evidence)
        reference = f"{num_dreams:,} dreams of {'all units' if self.exchangeable else 'its own'}"
        size = f"{num:,} unit{'s' * (num != 1)}, each against {reference}, {self.max_ess:,} particles"
        lines = [
            f"SimulationGap of {size}" + ": NO VERDICT, as the guide reads no data" * (not self.guide_reads),
            *["  If it was fitted to these data, it suits them better than any dream."] * (not self.guide_reads),
            f"  log evidence  {self._ranked(self.p_values)}{self._below(0) if num == 1 else ''}",
            f"  ESS           {self._ranked(self.ess_p_values)}",
        ]
        if num > 1:
            first = [unit for unit in self.order[:5] if not np.isnan(self.p_values.ravel()[unit])]
            below = [self._below(unit) for unit in first[:1]] + [""] * len(first)
            said = [f"{u} (p = {self.p_values.ravel()[u]:.2g}{b})" for u, b in zip(first, below, strict=False)]
            lines += [f"  most unlike   {', '.join(said) or 'none is ranked'}"]
        if np.ndim(self.p_values) == 0:
            lines += ["  Model and guide have no plate in common, and all data are one unit."]
        dead = p_values.all_dead(self.dreamt_log_evidence)
        num_dead, num_nan = int(np.sum(dead)), int(np.sum(np.isnan(self.p_values) & ~dead))
        if num_nan:
            lines.append(f"  {num_nan:,} with NaN among data or log-weights, which are not ranked.")
        if num_dead:
            lines.append(f"  {num_dead:,} with dreams all of weight zero, which are not ranked: covariates may be NaN.")
        return "\n".join(lines)

    @property
    def _num_dreams(self) -> int:
        """How many each unit is compared with, but for units that are not ranked."""
        return self.dreamt_log_evidence.size if self.exchangeable else len(self.dreamt_log_evidence)

    def _ranked(self, values: np.ndarray) -> str:
        """The p-value of the only unit, or how many of all are small."""
        share, is_one = p_values.expected_share(_LEVEL, self._num_dreams), values.size == 1
        said = f"p = {values.item():.2g}" if is_one else ""
        if not share:
            least = f"no p-value can be below {1 / (1 + self._num_dreams):.2g}"
            return f"{said}{'; ' * is_one}{least}; {math.ceil(1 / _LEVEL) - 1} dreams would do"
        return said or self._counted(values[~np.isnan(values)], share)

    def _below(self, unit: int) -> str:
        """How far the log evidence of a unit lies below that of all dreams that it is compared with, if it does."""
        dreamt = self.dreamt_log_evidence.reshape(len(self.dreamt_log_evidence), -1)
        dreamt, real = dreamt if self.exchangeable else dreamt[:, unit], self.log_evidence.ravel()[unit]
        if not real < np.nan_to_num(dreamt, nan=-np.inf, neginf=-np.inf).min():
            return ""
        far = f"{_short(dreamt.min() - real)} nats below" if np.isfinite(real) else "of weight zero, below"
        return f", {far} all {dreamt.size:,} dreams"

    def _counted(self, values: np.ndarray, share: float) -> str:
        """How many p-values are small, and how many would be."""
        count = int(np.sum(values <= _LEVEL))
        chance = p_values.chance_of_as_many(count, values.size, share)
        expected = f"{_short(share * values.size)} expected, chance of as many {chance:.2g}"
        return f"{count:,} of {values.size:,} have p <= {_LEVEL} ({expected})"


def _short(number: float) -> str:
    """Two digits, or all that are in front of the point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
