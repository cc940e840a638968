"""How dreams reach the guide: what its arguments have to be, and messages that say so."""

import inspect
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.autoguide import AutoGuide

from rws_jax.core.errors import describe, fail


def check_minibatch(name: str, dreamt: Any, args: tuple, kwargs: dict) -> None:
    """A dreamt minibatch has its own rows only: a guide that picks them out of full data would read beyond."""
    shape = jnp.shape(dreamt)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves((args, kwargs))]
    longer = [s for s in shapes if len(s) == len(shape) and sum(map(operator.ne, s, shape)) == 1 and s > shape]
    if longer and shape not in shapes:
        fail(
            ValueError,
            f"sleep cannot dream a minibatch that the model itself picks, at observed site {name!r}",
            expected=f"the minibatch among the arguments, of shape {shape}",
            found=f"full data of shape {longer[0]}",
            hint="pass the minibatch to model and guide, not the full data; plates keep size and subsample_size",
        )


def check_shape(name: str, dreamt: Any, real: Any) -> None:
    """Dreams have the shape of the real data that they stand in for."""
    if real is not None and np.shape(real) != jnp.shape(dreamt):
        other_length = jnp.ndim(real) == jnp.ndim(dreamt)
        fail(
            ValueError,
            f"dreamt and real data differ in shape at observed site {name!r}",
            expected=f"{np.shape(real)}, the shape of the guide's real argument",
            found=f"{jnp.shape(dreamt)}, as dreamt by the model",
            hint="pass the data (the minibatch, not the full data) in the shape that the model gives them, or say by"
            " simulated_data_to_args what the guide is to see"
            + ("; data of random length are padded, and masked in the model (docs/control_flow.md)" * other_length),
        )


def check_single_site(name: str, other: str | None, argument: str) -> None:
    """One array cannot hold the dreams of two sites."""
    if other is not None and other != name:
        fail(
            ValueError,
            f"sites {other!r} and {name!r} observe one array, and their dreams differ",
            expected="an array for each observed site",
            found=f"argument {argument!r}, which both observe",
            hint="observe it once, or say by simulated_data_to_args what the guide is to see",
        )


def fail_ambiguous(name: str, arguments: list[str]) -> NoReturn:
    """Data in one argument, a covariate in the other: dreams must go to the first alone."""
    fail(
        ValueError,
        f"observed site {name!r} observes an array that is passed more than once",
        expected=f"one argument that is the data of {name!r}",
        found=f"the same array in arguments {arguments}",
        hint=f"name the argument that is data {name!r}, pass a copy (jnp.array(x)) for the other,"
        " or pass simulated_data_to_args",
    )


def check_pair(value: Any) -> None:
    """`simulated_data_to_args` returns ``(args, kwargs)``."""
    pair = value if isinstance(value, tuple) and len(value) == 2 else (None, None)
    if not (isinstance(pair[0], tuple | list) and isinstance(pair[1], dict)):
        fail(
            TypeError,
            "option 'simulated_data_to_args' returned something else than the guide's arguments",
            expected="a pair (args, kwargs) of a tuple and a dict",
            found=describe(value),
            hint="simulated_data_to_args=lambda sim, *args, **kwargs: ((sim['x'],), {})",
        )


def fail_joint(guide: AutoGuide) -> NoReturn:
    """Dreams are values of the model's latents; such guides score points, or another variable."""
    fail(
        ValueError,
        f"sleep cannot train the automatic guide {name_of(guide)}: a point, or one that draws through another site",
        expected="a guide with a density for each latent site",
        found=f"{name_of(guide)}",
        hint="use AutoNormal, or insomnia=1.0",
    )


def fail_unrouted(guide: Callable[..., Any], observed: list[str], parameters: list[str]) -> NoReturn:
    """Sleep has nowhere to put its dreams, and would train on real data in silence."""
    fail(
        ValueError,
        f"sleep cannot hand its dreams to the guide {name_of(guide)}",
        expected=f"guide arguments named as the observed sites {observed}, or one named 'observations', or an argument"
        " that is, or has in it, the very array that the model observes",
        found=f"arguments {parameters}",
        hint="rename the guide's data argument, let the model observe the array as it was passed, or pass"
        " simulated_data_to_args=lambda sim, *args, **kwargs: (guide_args, guide_kwargs)",
    )


def fail_unbound(guide: Any, problem: str, signature: inspect.Signature) -> NoReturn:
    """The guide is called as the model is, and cannot be."""
    fail(
        TypeError,
        f"the guide {name_of(guide)} cannot be called with the arguments of the model: {problem}",
        expected="model and guide to take the same arguments",
        found=f"{name_of(guide)}{signature}",
        hint="give the guide the model's arguments, or say by simulated_data_to_args what it is to get",
    )


def name_of(guide: Any) -> str:
    """What messages call a guide."""
    guide = guide.func if isinstance(guide, partial) else guide
    return repr(getattr(guide, "__name__", type(guide).__name__))
