"""What simulation-based calibration finds: ranks, whether they are uniform, and what intervals cover."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from rws_jax.posterior.dreams import uniformity
from rws_jax.posterior.dreams.uniformity import EcdfBand

_NUM_LINES = 12  # of sites in a printed summary
_DENSITIES = {"log_q": "log q(z | x), the guide's density", "log_p": "log p(z, x), the model's density"}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "ranks",
        "p_values",
        "coverage",
        "density_ranks",
        "density_p_values",
        "expected_coverage",
        "levels",
    ],
    meta_fields=["num_samples", "weighted", "left_out", "guide_reads"],
)
@dataclass(frozen=True, repr=False)
class Calibration:
    """Result of `simulation_based_calibration`; NumPy arrays, keyed by latent site or by log density.

    Log densities are ``"log_q"``, the guide's log density of all latents given the data, and ``"log_p"``, the
    model's of latents and data, each of shape ``units``: that of the plates common to all sites, or () for one unit.

    Attributes:
      ranks: of each dream among the draws that the guide makes for it, 0 to `num_samples`; ``(simulations, *shape)``,
        without the simulations that have NaN in them.
      p_values: of uniform ranks, for each scalar of each latent; the shape of the latent.
      coverage: share of dreams in the central interval of each of `levels`; ``(levels, *shape)``.
      density_ranks: ranks of log densities; ``(simulations, *units)``.
      density_p_values: of uniform ranks; ``units``.
      expected_coverage: share of dreams in the guide's region of highest density, of each of `levels`;
        ``(levels, *units)``.
      levels: probabilities that intervals and regions claim to hold.
      num_samples: L, draws of the guide for each dream.
      weighted: whether draws are weighted by the model.
      left_out: latents that have another shape in another branch, which are not ranked.
      guide_reads: whether the guide reads data; if not, and it was fitted to some, none of this means anything.
    """

    ranks: dict[str, np.ndarray]
    p_values: dict[str, np.ndarray]
    coverage: dict[str, np.ndarray]
    density_ranks: dict[str, np.ndarray]
    density_p_values: dict[str, np.ndarray]
    expected_coverage: np.ndarray
    levels: np.ndarray
    num_samples: int
    weighted: bool = False
    left_out: tuple[str, ...] = ()
    guide_reads: bool = True

    @classmethod
    def of(
        cls,
        ranks: dict[str, np.ndarray],
        density_ranks: dict[str, np.ndarray],
        levels: tuple[float, ...],
        num_samples: int,
        **about: Any,
    ) -> "Calibration":
        """Test and sum up ranks."""
        p_values = lambda ranks: {name: uniformity.p_values(of_site, num_samples) for name, of_site in ranks.items()}
        central = lambda level: (0.5 - level / 2, 0.5 + level / 2)
        coverage = lambda of_site: np.stack([_share_within(of_site, num_samples, *central(level)) for level in levels])
        highest = [_share_within(density_ranks["log_q"], num_samples, 1.0 - level, 1.0) for level in levels]
        return cls(
            ranks=ranks,
            p_values=p_values(ranks),
            coverage={name: coverage(of_site) for name, of_site in ranks.items()},
            density_ranks=density_ranks,
            density_p_values=p_values(density_ranks),
            expected_coverage=np.stack(highest),
            levels=np.array(levels),
            num_samples=num_samples,
            **about,
        )

    @property
    def num_simulations(self) -> int:
        """How many dreams there were."""
        return len(self.density_ranks["log_q"])

    @property
    def p_value(self) -> float:
        """One p-value for all scalars and log densities: the smallest times their number (Bonferroni), at most 1.

        Below 0.01, say, the guide is not calibrated; a guide that is has such a one in at most 1 % of all runs.
        """
        return uniformity.overall_p_value(self._all_p_values())

    def ecdf(self, name: str) -> np.ndarray:
        """The share of ranks below each point of `band`; ``(points, *shape)``.

        Args:
          name: a latent site, or a log density, ``"log_q"`` or ``"log_p"``, if no site is named so.
        """
        ranks = self.ranks[name] if name in self.ranks else self.density_ranks[name]
        return uniformity.ecdf(ranks, self.num_samples)

    def band(self, level: float = 0.95) -> EcdfBand:
        """The band that `ecdf` of a calibrated guide stays within with probability `level`, for one scalar.

        Args:
          level: in (0, 1).
        """
        return uniformity.band(self.num_simulations, self.num_samples, level)

    def __repr__(self) -> str:
        """The verdict in words, then a line for each site."""
        num = self._all_p_values().size
        draws = f"{self.num_samples} {'weighted draws' if self.weighted else 'draws'}"
        lines = [f"Calibration by {self.num_simulations} simulations, {draws} each: "]
        if self.guide_reads:
            lines[0] += self._verdict()
        else:
            lines[0] += "NO VERDICT, as the guide reads no data"
            lines += ["  If it was fitted to one data set, it cannot be tested on dreams, which are others."]
            lines += [f"  As a guide for all data: {self._verdict()}"]
        lines += [f"  p-value {self.p_value:.2g}, of {num} quantities together (the smallest times {num})"]
        for name in list(self.ranks)[:_NUM_LINES]:
            lines.append(f"  {self._line(name)}")
        if len(self.ranks) > _NUM_LINES:
            lines.append(f"  ... and {len(self.ranks) - _NUM_LINES} more sites")
        lines += [f"  {text}: p {_smallest(self.density_p_values[name])}" for name, text in _DENSITIES.items()]
        if self.left_out:
            lines.append(f"  left out, as their shapes differ between branches: {', '.join(self.left_out)}")
        return "\n".join(lines)

    def _all_p_values(self) -> np.ndarray:
        return np.concatenate([np.ravel(p) for p in (*self.p_values.values(), *self.density_p_values.values())])

    def _verdict(self) -> str:
        num, num_simulations = self._all_p_values().size, self.num_simulations
        if self.p_value >= 0.01:
            found = uniformity.p_value_of_half_width(num_simulations, self.num_samples) * num < 0.01
            too_few = f", but {num_simulations} simulations would not show a guide of half the posterior's width either"
            return "no sign of miscalibration" + too_few * (not found)
        smallest = {name: p.min() for name, p in self.p_values.items() if p.size}
        worst = min(smallest, key=lambda name: smallest[name], default=None)
        if worst is not None and smallest[worst] * num < 0.01:
            return f"NOT calibrated: draws of {worst!r} are {self._what_is_wrong(worst)}"
        return "NOT calibrated: each latent may be, but all together are not, given the data"

    def _what_is_wrong(self, name: str) -> str:
        p = np.ravel(self.p_values[name])
        uniform = (self.ranks[name].reshape(self.num_simulations, -1)[:, p.argmin()] + 0.5) / (self.num_samples + 1)
        shift = (uniform.mean() - 0.5) * np.sqrt(12 * uniform.size)  # in standard errors
        spread = (np.mean((uniform - 0.5) ** 2) - 1 / 12) * np.sqrt(180 * uniform.size)
        if max(abs(shift), abs(spread)) < 3:
            return "of another shape than the posterior"
        if abs(shift) > abs(spread):
            return "too low" if shift > 0 else "too high"
        return "too narrow" if spread > 0 else "too wide"

    def _line(self, name: str) -> str:
        covered, level = self.coverage[name][-1], self.levels[-1]
        low, high = (f"{100 * share:.0f}" for share in (covered.min(), covered.max()))
        return f"{name}: p {_smallest(self.p_values[name])}; {100 * level:.0f} % intervals cover " + (
            f"{low} %" if low == high else f"{low} to {high} %"
        )


def _share_within(ranks: np.ndarray, num_samples: int, low: float, high: float) -> np.ndarray:
    """The expected share of ranks between two quantiles, if each is spread evenly over its bin of ``1 / (L + 1)``."""
    start = np.asarray(ranks) / (num_samples + 1)
    overlap = np.minimum(start + 1 / (num_samples + 1), high) - np.maximum(start, low)
    return np.mean(np.clip(overlap * (num_samples + 1), 0.0, 1.0), axis=0)


def _smallest(p: np.ndarray) -> str:
    return f"{p.min():.2g}" + (f" (smallest of {p.size})" if p.size > 1 else "") if p.size else "of nothing"
