"""What `evaluate` returns: held-out evidence of each unit, with its errors, and a summary in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from rws_jax.posterior.held_out.evidence import EvidenceSummary
from rws_jax.posterior.held_out.trust import num_poor, rise


class BoundByNumParticles(NamedTuple):
    """The bound for growing numbers of particles, per unit; shape ``(sizes,)`` each, in nats."""

    sizes: np.ndarray
    bounds: np.ndarray
    standard_errors: np.ndarray  # over particles, given the data


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["sizes", "bounds", "standard_errors", "effective_sample_size"],
    meta_fields=["of_batches"],
)
@dataclass(frozen=True, repr=False)
class Evaluation:
    """Log evidence of held-out data in nats, unit by unit, in the order of the batches; arrays of NumPy.

    A unit is an element of the plates that model and guide have in common, usually one datum. Where they have none,
    each batch is a unit, and what is said here of data is said of batches.

    A unit whose particles all have weight zero has evidence ``-inf``, and so have mean and total. One with NaN among
    its log-weights has NaN.

    Printed, it says so where the bound still rises with K, and where few particles carry nearly all of the weight.

    Attributes:
      sizes: the sizes K: powers of ten up to the number of particles, and that number. Shape ``(sizes,)``.
      bounds: bound on log evidence with K particles, a mean over disjoint groups of K. Shape ``(sizes, units)``.
      standard_errors: those of `bounds` over particles. Shape ``(sizes, units)``; NaN where they are not known.
      effective_sample_size: Kish's, of all particles. Shape ``(units,)``.
      of_batches: whether each unit is a batch as a whole.
    """

    sizes: np.ndarray
    bounds: np.ndarray
    standard_errors: np.ndarray
    effective_sample_size: np.ndarray
    of_batches: bool = False

    @classmethod
    def of(cls, sizes: Sequence[int], batches: Sequence[EvidenceSummary]) -> "Evaluation":
        """Of summaries of batches, in the memory of the host."""
        flat = lambda leaf, num_axes: np.reshape(leaf, (*np.shape(leaf)[:num_axes], -1))
        joined = lambda leaves, num_axes: np.concatenate([flat(leaf, num_axes) for leaf in leaves], axis=-1)
        bounds, errors, ess = zip(*batches, strict=True)
        of_batches = np.ndim(ess[0]) == 0
        return cls(np.array(sizes), joined(bounds, 1), joined(errors, 1), joined(ess, 0), of_batches)

    @property
    def log_evidence(self) -> np.ndarray:
        """The bound with all particles, shape ``(units,)``: log evidence, but for a bias of order 1/K."""
        return self.bounds[-1]

    @property
    def standard_error(self) -> np.ndarray:
        """That of `log_evidence` over particles, by the delta method; shape ``(units,)``."""
        return self.standard_errors[-1]

    @property
    def num_units(self) -> int:
        """How many units there are."""
        return self.log_evidence.size

    @property
    def total(self) -> float:
        """Sum of `log_evidence` over units; its error over particles is that of the mean, times `num_units`."""
        return float(np.sum(self.log_evidence, dtype=float))

    @property
    def mean(self) -> float:
        """Mean of `log_evidence` over units."""
        return self.total / self.num_units

    @property
    def standard_error_over_data(self) -> float:
        """Standard error of the mean as that of all data which units are a random sample of; NaN for one unit.

        It comes from the spread between units, which contains that of their particles.
        """
        return _standard_deviation(self.log_evidence) / math.sqrt(self.num_units)

    @property
    def standard_error_over_particles(self) -> float:
        """Standard error of the mean as that of these units: how far other particles would move it."""
        return float(self.by_num_particles.standard_errors[-1])

    @property
    def by_num_particles(self) -> BoundByNumParticles:
        """Means over units for growing K, with their errors over particles."""
        with np.errstate(invalid="ignore"):  # of units that are not finite
            means = np.mean(self.bounds, axis=-1, dtype=float)
            errors = np.sqrt(np.sum(np.square(self.standard_errors, dtype=float), axis=-1)) / self.num_units
        return BoundByNumParticles(self.sizes, means, errors)

    @property
    def ess_mean(self) -> float:
        """Mean of the effective sample size over units, but for those of which it is NaN."""
        return float(np.mean(self._known_ess, dtype=float)) if self._known_ess.size else math.nan

    @property
    def ess_min(self) -> float:
        """Its minimum."""
        return float(np.min(self._known_ess)) if self._known_ess.size else math.nan

    @property
    def _known_ess(self) -> np.ndarray:
        return self.effective_sample_size[~np.isnan(self.effective_sample_size)]

    @property
    def num_dead_units(self) -> int:
        """How many units have no particle of non-zero weight: their evidence is ``-inf``."""
        return int(np.sum(self.log_evidence == -np.inf))

    @property
    def num_nonfinite_units(self) -> int:
        """How many units have NaN, or ``+inf``, among their log-weights."""
        return int(np.sum(np.isnan(self.log_evidence) | (self.log_evidence == np.inf)))

    def __repr__(self) -> str:
        if not isinstance(self.bounds, np.ndarray):  # inside of a function of JAX that maps over trees
            return f"Evaluation(bounds={self.bounds})"
        num, last = self.num_units, int(self.sizes[-1])
        unit = "batch" if self.of_batches else "unit"
        over_data, over_particles = self.standard_error_over_data, self.standard_error_over_particles
        shown = partial(_rounded, error=over_particles)
        means = zip(self.sizes, self.by_num_particles.bounds, strict=True)
        lines = [
            f"Evaluation of {_counted(num, unit)}, {_counted(last, 'particle')} each, in nats",
            f"  log evidence    {shown(self.mean)} per {unit}, {_rounded(self.total, over_particles * num)} in total",
            f"  standard error  {_error(over_data)} over data, {_error(over_particles)} over particles",
            f"  bound by K      {', '.join(f'{size}: {shown(bound)}' for size, bound in means)}",
            f"  ESS             mean {self.ess_mean:.1f}, minimum {self.ess_min:.1f}, of {last}",
            *self._remarks(unit),
        ]
        return "\n".join(lines)

    def _remarks(self, unit: str) -> list[str]:
        remarks = []
        if self.of_batches:
            remarks.append(
                "Model and guide have no plate in common: each batch is one unit, with one weight a particle."
            )
        if self.num_dead_units:
            dead = _counted(self.num_dead_units, f"dead {unit}")
            remarks.append(f"{dead}: no particle of non-zero weight, evidence -inf, and so mean and total.")
        if self.num_nonfinite_units:
            remarks.append(f"{_counted(self.num_nonfinite_units, unit)} with NaN or +inf among the log-weights.")
        finite = self.log_evidence[np.isfinite(self.log_evidence)]
        if 0 < finite.size < self.num_units:
            error = _standard_deviation(finite) / math.sqrt(finite.size)
            remarks.append(f"The other {finite.size}: {_rounded(float(np.mean(finite)), error)} per {unit}.")
        risen = rise(self.sizes, self.bounds, self.standard_errors, self._known_ess)
        shortfall = float(np.mean(np.square(self.standard_error, dtype=float))) / 2
        if risen is not None:
            how = f"by {risen.nats:.2g} nats per {unit} from K={risen.start:,} to K={self.sizes[-1]:,}"
            remarks.append(f"The bound still rises, {how}: it is not yet an estimate of log evidence.")
        elif self.standard_error_over_particles < shortfall:  # else it is lost in the noise
            remarks.append(f"The bound lies about {shortfall:.2g} nats per {unit} below log evidence.")
        limit, poor = num_poor(self._known_ess, int(self.sizes[-1]))
        if poor:
            where = f"in {poor:,} of {_counted(self.num_units, unit)}"
            remarks.append(f"ESS is below {limit:g} {where}: errors over particles are too small there.")
        if poor or risen is not None:
            remarks.append("What helps: more particles, a guide that is trained longer or is wider, or defensive=0.2.")
        return [f"  {remark}" for remark in remarks]


def _standard_deviation(values: np.ndarray) -> float:
    if values.size < 2:
        return math.nan
    with np.errstate(invalid="ignore"):
        return float(np.std(values, ddof=1, dtype=float))


def _counted(number: int, noun: str) -> str:
    plural = {"batch": "batches", "dead batch": "dead batches"}.get(noun, f"{noun}s")
    return f"{number:,} {noun if number == 1 else plural}"


def _error(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2g}"


def _rounded(value: float, error: float) -> str:
    """A number up to the second digit of its error, and no further than floats can be trusted."""
    known = math.isfinite(value) and math.isfinite(error) and error > 0
    return f"{value:,.{min(max(1 - math.floor(math.log10(error)), 0), 4)}f}" if known else f"{value:.6g}"
