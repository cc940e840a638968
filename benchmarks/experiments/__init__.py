"""Experiments of `reproduce.py`, one module each."""
