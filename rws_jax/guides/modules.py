"""Networks of the user's, whatever library they are of, as functions of one datum whose weights are param sites."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.contrib.module import eqx_module, flax_module, nnx_module

from rws_jax.core.errors import fail


def as_function(name: str, module: Any, *args: Any, **kwargs: Any) -> Any:
    """A module of flax.linen, flax.nnx or equinox as a function; functions are what they are.

    Args:
      name: of the param site of its weights.
      module: the module, or a function.
      args: what a module of flax.linen is called with first.
      kwargs: the same by keyword.
    """
    bases = {f"{base.__module__}.{base.__name__}" for base in type(module).__mro__}
    if any(base.startswith("flax.linen.") for base in bases):
        return flax_module(name, module, *args, **kwargs)
    if any(base.startswith("flax.nnx.") for base in bases):
        return nnx_module(name, module)
    if any(base.startswith("equinox.") for base in bases):
        return eqx_module(name, module)
    return module


def vector_of(function: Callable[..., Any], what: str, *args: Any, **kwargs: Any) -> jax.Array:
    """The vector that a network makes of one datum."""
    value = function(*args, **kwargs)
    shape = jnp.shape(value) if isinstance(value, jax.Array | np.ndarray) else None
    if shape is None or len(shape) != 1:
        fail(
            ValueError,
            f"{what} of compile_guide returns no vector",
            expected="a vector of shape (n,) for one datum: it is called for each datum by jax.vmap",
            found=f"a {type(value).__name__}" if shape is None else f"an array of shape {shape}",
            hint="take one datum, without an axis of data, and end with jnp.ravel(...) or jnp.atleast_1d(...)",
        )
    return jnp.asarray(value)
