"""Posterior samples with their weights: drawing them, what they say, and how far to trust them."""
