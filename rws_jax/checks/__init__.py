"""Predicates and messages on what was passed and what was run; they run no program themselves."""
