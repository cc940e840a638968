"""Training: states and steps of `make_step`, loops of `fit`, and the same losses for NumPyro's `SVI`."""
