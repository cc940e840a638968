"""How particles run, one way a file, and nothing else: no executor knows what a log-weight is."""
