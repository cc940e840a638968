"""What all pictures share: colours, new figures and legends. No global setting of matplotlib is touched."""

from typing import Any

import numpy as np

from rws_jax.core.errors import fail

try:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator as MaxNLocator
except ImportError as error:
    raise ImportError('rws_jax.plots needs matplotlib: pip install "rws_jax[plots]"', name="matplotlib") from error

# Okabe and Ito's, but for grey.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLORS = [BLUE, VERMILLION, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000"]
GREY = "#767676"


def numbers(value: Any, which: str, dtype: Any = float) -> Any:
    """What is to be drawn, as an array of numbers: not the object that such arrays are in.

    Args:
      value: what a caller has passed.
      which: which arrays of which objects to pass in place of it, as code.
      dtype: what numbers they are; None for those that they are.
    """
    try:
        array = np.asarray(value, dtype)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype == object:
        fail(
            TypeError, "there are no numbers to draw", expected="arrays", found=f"a {type(value).__name__}", hint=which
        )
    return array


def new_axes(width: float = 6.0, height: float = 4.0, rows: int = 1) -> Any:
    """The Axes of a new figure, or an array of those of each row; sizes are in inches."""
    import matplotlib.pyplot as plt  # which chooses a backend

    return plt.subplots(rows, figsize=(width, height), layout="constrained", sharex=rows > 1)[1]


def given_or_new(ax: Axes | None, width: float = 6.0, height: float = 4.0) -> Axes:
    """The Axes that a caller has passed, or those of a new figure."""
    return new_axes(width, height) if ax is None else ax


def legend(ax: Axes) -> None:
    """Above the Axes, where it hides nothing, in as many columns as there is room for."""
    _, labels = ax.get_legend_handles_labels()
    if not labels:
        return
    longest = max(map(len, labels))
    num_columns = 3 if longest <= 17 else 2 if longest <= 32 else 1
    made = ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=num_columns, frameon=False, borderaxespad=0.2)
    for line in made.get_lines():  # as thick as can be seen, however thin and pale curves are
        line.set(alpha=1.0, linewidth=max(line.get_linewidth(), 1.5))
