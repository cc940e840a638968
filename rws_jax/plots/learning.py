"""How training went, step by step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rws_jax.core.errors import fail
from rws_jax.plots.axes import COLORS, Axes, legend, new_axes
from rws_jax.training.state import RWSInfo

_SMOOTH_FROM = 100  # steps from which curves are averaged as well
_STYLES = ["-", "-", "--"]  # sleep-phi and wake-phi often are one curve


def learning_curves(infos: RWSInfo, axes: Axes | Sequence[Axes] | None = None) -> Any:
    """Draw the losses of a training, the effective sample size, and how many units were dead.

    From 100 steps on each step is drawn pale, and a mean over a fiftieth of all steps in full colour.

    Args:
      infos: those of all steps, stacked, as `fit` returns them; of several seeds, shape ``(steps, seeds)``.
      axes: three Axes, or a single one for the losses alone.

    Returns:
      The Axes that were given, or three new ones.

    Example:
      >>> import jax.numpy as jnp
      >>> from rws_jax import RWSInfo, plots
      >>> infos = RWSInfo.of_no_steps()._replace(phi_loss=jnp.array([3.0, 2.0]), sleep_phi_loss=jnp.array([3.0, 2.0]))
      >>> losses, ess, dead = plots.learning_curves(infos)
      >>> losses.get_ylabel(), dead.get_xlabel()
      ('loss, nats', 'step')
    """
    if not isinstance(infos, RWSInfo):
        hint = "pass infos of all steps, as in state, infos = rws_jax.fit(...), then plots.learning_curves(infos)"
        found = f"a {type(infos).__name__}"
        fail(TypeError, "there are no curves to draw", expected="an RWSInfo of arrays", found=found, hint=hint)
    given = axes is not None
    panels = new_axes(height=6.5, rows=3) if axes is None else np.atleast_1d(np.asarray(axes, dtype=object))
    losses = {"wake-theta": infos.wake_theta_loss, "wake-phi": infos.wake_phi_loss, "sleep-phi": infos.sleep_phi_loss}
    ess = {"mean over units": infos.ess_mean, "worst unit": infos.ess_min}
    if ess["mean over units"] is not None and np.array_equal(*map(np.asarray, ess.values()), equal_nan=True):
        ess = {"": infos.ess_mean}  # of one unit
    curves = [("loss, nats", losses), ("ESS, particles", ess), ("dead units", {"": infos.num_dead_units})]
    for panel, (label, by_name) in zip(panels, curves, strict=False):
        _draw_steps(panel, by_name)
        panel.set_ylabel(label)
        if given or panel is panels[-1]:
            panel.set_xlabel("step")
    if len(panels) > 2:  # counts: none is below zero, nor a fraction
        top = max(1.0, panels[2].get_ylim()[1])
        panels[2].set_ylim(-0.05 * top, top)
        panels[2].yaxis.get_major_locator().set_params(integer=True)
    return axes if given else panels


def _draw_steps(ax: Axes, by_name: Mapping[str, Any]) -> None:
    given = {name: np.asarray(values, float) for name, values in by_name.items() if values is not None}
    for number, (name, values) in enumerate(given.items()):
        steps, window = np.arange(len(values)), max(1, len(values) // 50)
        smooth = len(values) >= _SMOOTH_FROM
        style: dict[str, Any] = {"color": COLORS[number], "ls": _STYLES[number], "lw": 2}
        pale: dict[str, Any] = {"color": COLORS[number], "lw": 1, "alpha": 0.3}
        lines = ax.plot(steps, values, **(pale if smooth else style))
        if smooth:
            kernel, columns = np.ones(window) / window, values.reshape(len(values), -1)
            means = np.stack([np.convolve(column, kernel, mode="valid") for column in columns.T], axis=1)
            lines = ax.plot(steps[: len(means)] + (window - 1) / 2, means, **style)
        if lines:
            lines[0].set_label(name or "_")
    legend(ax)
