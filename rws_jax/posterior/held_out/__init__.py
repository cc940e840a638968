"""Held-out evidence of each datum."""
