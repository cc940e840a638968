"""Pictures of training and of what comes after it, drawn by matplotlib: ``from rws_jax import plots``.

Each function takes arrays, and the Axes to draw on, or none for a new figure, and returns the Axes. Nothing is shown,
and no setting of matplotlib is changed. Colours are Okabe and Ito's, which colour-blind people can tell apart.
"""

from rws_jax.plots.calibrated import calibration, coverage
from rws_jax.plots.learning import learning_curves
from rws_jax.plots.weighted import bound_by_num_particles, pareto_k, weights_tail

__all__ = ["bound_by_num_particles", "calibration", "coverage", "learning_curves", "pareto_k", "weights_tail"]
