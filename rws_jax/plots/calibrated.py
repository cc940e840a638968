"""Whether a guide is as uncertain as it should be: ranks and coverage of simulation-based calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rws_jax.plots.axes import COLORS, GREY, Axes, given_or_new, legend, numbers
from rws_jax.posterior.dreams import uniformity

_RANKS = "pass its arrays, as in plots.calibration(calibration.ranks, calibration.num_samples)"
_COVERED = "pass its arrays, as in plots.coverage(calibration.levels, calibration.coverage)"
_MAX_NAMED = len(COLORS)  # sites that have a colour and a name each


def calibration(
    ranks: Any,
    num_samples: Any = None,
    *,
    level: float = 0.95,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how far the distribution of SBC ranks is from uniform, and the band that calibrated ranks stay within.

    The share of ranks below each point, minus the share expected: below zero where dreams lie too high among the
    guide's draws. A slope at both ends that goes up, down and up again is a guide that is too narrow.

    Args:
      ranks: integers from 0 to `num_samples`, shape ``(simulations, *shape)``, or a dict of these by site; as ``ranks``
        and ``density_ranks`` of `simulation_based_calibration`. Each scalar has a curve.
      num_samples: draws that each rank is among.
      level: probability with which a calibrated curve lies within the band from end to end.
      names: which sites of a dict to draw; default all.
      ax: where to draw.
    """
    num_samples = int(numbers(num_samples, _RANKS, None))
    by_name = {name: _columns(values, _RANKS) for name, values in _by_name(ranks, names).items()}
    ax = given_or_new(ax)
    num_simulations = len(next(iter(by_name.values())))
    points, low, high = uniformity.band(num_simulations, num_samples, level)
    whole = lambda values: np.concatenate([[0.0], values, [0.0]])
    x = np.concatenate([[0.0], points, [1.0]])
    ax.fill_between(
        x, whole(low - points), whole(high - points), color=GREY, alpha=0.25, lw=0, label=f"{100 * level:g} % band"
    )
    ax.axhline(0.0, color=GREY, lw=1)
    for number, (name, columns) in enumerate(by_name.items()):
        shares = uniformity.ecdf(columns, num_samples)
        outside = int(np.sum(np.any((shares < low[:, None]) | (shares > high[:, None]), axis=0)))
        text = f"{name}: {outside} of {columns.shape[1]} outside" if columns.shape[1] > 1 else name or "ranks"
        _draw_many(ax, x, np.stack([whole(share - points) for share in shares.T], axis=1), number, text)
    ax.set(xlim=(0, 1), xlabel="rank of the truth among the guide's draws, as a share", ylabel="ECDF minus uniform")
    legend(ax)
    return ax


def coverage(
    levels: Any,
    covered: Any = None,
    *,
    num_simulations: int | None = None,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often intervals cover the truth, against how often they claim to.

    Args:
      levels: probabilities that intervals claim, shape ``(levels,)``.
      covered: share of dreams that they cover, shape ``(levels, *shape)``, or a dict of these by site; as ``coverage``
        and ``expected_coverage`` of `simulation_based_calibration`. Each scalar has a curve.
      num_simulations: how many dreams; given, each level has the central 95 % of what is expected of them.
      names: which sites of a dict to draw; default all.
      ax: where to draw.
    """
    levels = numbers(levels, _COVERED)
    by_name = {name: _columns(values, _COVERED) for name, values in _by_name(covered, names).items()}
    ax = given_or_new(ax, width=4.8, height=4.8)
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="calibrated")
    if num_simulations is not None:
        from scipy.stats import binom  # takes a second to import

        x = np.linspace(0.0, 1.0, 201)
        low, high = (binom.ppf(q, num_simulations, x) / num_simulations for q in (0.025, 0.975))
        ax.fill_between(x, low, high, color=GREY, alpha=0.25, lw=0, label="95 % of each level")
    for number, (name, columns) in enumerate(by_name.items()):
        _draw_many(ax, levels, columns, number, name, marker="o", ms=4)
    ax.text(0.03, 0.97, "too wide", transform=ax.transAxes, va="top", color=GREY)
    ax.text(0.97, 0.03, "too narrow", transform=ax.transAxes, ha="right", color=GREY)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="probability claimed", ylabel="share of dreams covered")
    legend(ax)
    return ax


def _draw_many(ax: Axes, x: np.ndarray, columns: np.ndarray, number: int, name: str, **how: Any) -> None:
    """All curves of a site in one colour; sites from the eighth on are grey, and have no name."""
    named = number < _MAX_NAMED
    few = columns.shape[1] <= 3
    lines = ax.plot(x, columns, color=COLORS[number] if named else GREY, lw=1.5 if few else 0.8, **how)
    for line in lines:
        line.set_alpha(1.0 if few else 0.5)
    lines[0].set_label(name if named else "_")


def _by_name(values: Any, names: Sequence[str] | None) -> dict[str, Any]:
    by_name = dict(values) if isinstance(values, Mapping) else {"": values}
    return {name: by_name[name] for name in (by_name if names is None else names)}


def _columns(values: Any, which: str) -> np.ndarray:
    """Shape ``(rows, *shape)`` as ``(rows, scalars)``."""
    array = numbers(values, which, None)
    return array.reshape(len(array), -1)
