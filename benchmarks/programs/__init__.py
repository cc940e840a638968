"""Programs that branch in Python, in NumPyro and in Pyro, for `branching.py`.

Each module has the `model` and the `guide` of one datum, `draw_data(rng_key)`, and `pyro_programs(start)`, the same two
in Pyro, with parameters that start as `start` says, tensors by name.
"""
