"""Programs in which one log-weight for a unit is not enough, with exact answers, for `structured.py`."""
