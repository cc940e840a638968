"""Programs that branch in Python, compiled along each branching trace; `rws_jax.execution.by_paths` runs them."""
