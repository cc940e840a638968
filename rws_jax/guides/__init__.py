"""Guides that are made from the model."""
