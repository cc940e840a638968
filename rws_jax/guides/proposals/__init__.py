"""Proposal distributions by the support of a prior; this knows distributions alone, no sites and no networks."""
