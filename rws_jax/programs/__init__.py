"""Running one NumPyro program as one particle: draw, replay, simulate, and its log density for each unit."""
