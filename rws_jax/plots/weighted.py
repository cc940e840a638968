"""How far importance weights can be trusted: bounds for growing K, k-hat, and the tail of the weights."""

from typing import Any

import numpy as np

from rws_jax.core.errors import fail
from rws_jax.plots.axes import BLUE, COLORS, GREY, VERMILLION, Axes, MaxNLocator, given_or_new, legend, numbers
from rws_jax.posterior.samples import psis

_SMALLEST = 1e-6  # of the shares that are seen, in the largest one


def bound_by_num_particles(
    sizes: Any, bounds: Any = None, standard_errors: Any = None, *, name: str = "bound", ax: Axes | None = None
) -> Axes:
    """Draw the bound on log evidence for growing K, which it approaches from below.

    Args:
      sizes: K, shape ``(sizes,)``; with the next two as ``evaluate(...).by_num_particles`` gives them.
      bounds: mean bound per unit in nats, shape ``(sizes,)``.
      standard_errors: those of `bounds`; two of them are drawn to each side.
      name: what the legend calls it, where several are drawn on one Axes.
      ax: where to draw.
    """
    which = "pass its arrays, as in plots.bound_by_num_particles(*evaluation.by_num_particles)"
    x, y = numbers(sizes, which, None), numbers(bounds, which, None).astype(float)
    ax = given_or_new(ax)
    color = COLORS[len(ax.get_lines()) % len(COLORS)]
    ax.plot(x, y, color=color, marker="o", label=name if standard_errors is None else f"{name} ± 2 s.e.")
    if standard_errors is not None:
        errors = np.nan_to_num(2 * np.asarray(standard_errors, float))
        ax.fill_between(x, y - errors, y + errors, color=color, alpha=0.25, lw=0)
        ax.vlines(x, y - errors, y + errors, color=color)
    ax.set(xscale="log", xlabel="particles K", ylabel="log evidence per unit, nats")
    ax.ticklabel_format(axis="y", useOffset=False)  # an offset would be written where the legend is
    ax.set_xticks(x, [f"{size:,.0f}" for size in x])
    ax.minorticks_off()  # where sizes are no powers of ten, these have labels that overlap
    ax.grid(axis="y", color=GREY, alpha=0.25)
    legend(ax)
    return ax


def pareto_k(k: Any, *, ax: Axes | None = None) -> Axes:
    """Draw k-hat of each datum: above 0.7 its importance weights are not to be trusted.

    Where k-hat is infinite it is drawn as a triangle on the edge; NaN is left out, and counted.

    Args:
      k: shape ``units``, which are numbered along their axes; as ``weighted.pareto_k()`` gives it.
      ax: where to draw.
    """
    k = np.ravel(numbers(k, "pass its k-hat, as in plots.pareto_k(weighted.pareto_k())"))
    ax = given_or_new(ax)
    unit, finite = np.arange(len(k)), k[np.isfinite(k)]
    low, high = min(finite.min(initial=0.0), 0.0) - 0.1, max(finite.max(initial=1.0), 1.0) + 0.1
    size = 5 if len(k) <= 300 else 2.5
    good, bad = k <= 0.7, k > 0.7
    for which, color, marker, text in ((good, BLUE, "o", "at most 0.7"), (bad, VERMILLION, "D", "above 0.7")):
        shown = which & np.isfinite(k)
        label = f"{np.sum(shown if which is good else which):,} {text}"
        ax.plot(
            unit[shown], k[shown], ls="", marker=marker, ms=size, color=color, label=label, rasterized=len(k) > 5000
        )
    none = "without a tail (-inf)"
    for infinite, edge, color, marker, text in (
        (np.inf, high, VERMILLION, "^", "of these at inf"),
        (-np.inf, low, BLUE, "v", none),
    ):
        where = unit[k == infinite]
        if len(where):
            style: dict[str, Any] = {"ls": "", "marker": marker, "ms": size + 2, "color": color, "clip_on": False}
            ax.plot(where, np.full(len(where), edge), label=f"{len(where):,} {text}", **style)
    ax.axhline(0.7, color=GREY, ls="--", lw=1)
    num_nan = int(np.sum(np.isnan(k)))
    ax.set(
        ylim=(low, high), xlabel="datum" + f" ({num_nan:,} with NaN left out)" * bool(num_nan), ylabel="Pareto k-hat"
    )
    ax.set_xlim(-0.5 - 0.02 * len(k), len(k) - 0.5 + 0.02 * len(k))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    legend(ax)
    return ax


def weights_tail(log_weights: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the share of each particle in the total weight of one unit, the largest first, and the fitted Pareto tail.

    Even weights are a flat line. A few particles that carry most of the weight are a steep one. Shares
    below a millionth of the largest are outside of the picture. The tail needs ArviZ, and is left out without it.

    Args:
      log_weights: of one unit, shape ``(particles,)``, in nats.
      ax: where to draw.

    Raises:
      ValueError: for weights of several units, or of a unit that is dead or has NaN.
    """
    log_w = numbers(log_weights, "pass log-weights of one unit, as in plots.weights_tail(weighted.log_weights[:, 0])")
    if log_w.ndim != 1 or not np.isfinite(log_w.max(initial=-np.inf)):
        what = "weights_tail draws one unit with finite log-weights"
        found = f"shape {log_w.shape}" if log_w.ndim != 1 else f"a largest log-weight of {log_w.max(initial=-np.inf)}"
        hint = "pass weighted.log_weights[:, 0], say"
        fail(ValueError, what, expected="shape (particles,), the largest finite", found=found, hint=hint)
    ax = given_or_new(ax)
    num, log_total = len(log_w), np.logaddexp.reduce(log_w)
    shares = np.sort(np.exp(log_w - log_total))[::-1]
    live = shares[shares > 0]
    ax.axhline(1 / num, color=GREY, ls="--", lw=1, label="equal weights")
    label = f"weights: largest {shares[0]:.1%}, ESS {1 / np.sum(shares**2):.1f} of {num:,}"
    ax.plot(np.arange(1, len(live) + 1), live, ls="", marker="o", ms=4, color=BLUE, label=label)
    if psis.is_available():
        smoothed, k = psis.pareto_smoothed(log_w)
        smoothed, shares = np.exp(smoothed - log_total), np.exp(log_w - log_total)
        changed = shares[~np.isclose(smoothed, shares, rtol=1e-9, atol=0.0)]  # all weights of the tail
        tail = np.sort(smoothed)[::-1][: np.sum(shares >= changed.min(initial=np.inf))]
        if len(tail):
            ax.plot(np.arange(1, len(tail) + 1), tail, color=VERMILLION, lw=2, label=f"Pareto tail, k-hat {k:.2f}")
    dead = f" ({num - len(live):,} of weight zero left out)" if len(live) < num else ""
    ax.set(xscale="log", yscale="log", xlabel=f"particle, by weight{dead}", ylabel="share of the total weight")
    ax.set_ylim(max(0.5 * live[-1], min(_SMALLEST * live[0], 0.5 / num)), 2 * live[0])
    legend(ax)
    return ax
