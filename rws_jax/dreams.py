"""What sleep asks of programs: a model that can be dreamt from, and a guide that can be shown the dreams.

Real data must never reach the guide in place of dreamt ones.
"""

import inspect
import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.infer.autoguide import AutoGuide, AutoNormal

from rws_jax.sites import Site, Trace, base
from rws_jax.validation import describe, fail, unwrapped

Program = Callable[..., Any]


def show_data(
    guide: Program,
    data: dict[str, jax.Array],
    args: tuple,
    kwargs: dict,
    simulated_data_to_args: Callable[..., tuple[tuple, dict]] | None,
    *,
    subsampled: bool = False,
) -> tuple[tuple, dict]:
    """The guide's arguments with dreamt `data` in place of real ones.

    By, in this order: `simulated_data_to_args`; the guide's argument ``observations``, a dict keyed by site; guide
    arguments named as the observed sites.

    Args:
      guide: the guide, whose signature is inspected.
      data: dreamt values keyed by observed site.
      args: the model's real positional arguments, covariates among them.
      kwargs: the model's real keyword arguments.
      simulated_data_to_args: ``(data, *args, **kwargs) -> (args, kwargs)``, or None.
      subsampled: whether the dream is of a minibatch.

    Returns:
      The pair (args, kwargs) to call the guide with.

    Raises:
      ValueError: if none of the three ways applies, or dreamt and real data differ in shape.
      TypeError: if `simulated_data_to_args` does not return such a pair.
    """
    if simulated_data_to_args is not None:
        pair = simulated_data_to_args(data, *args, **kwargs)
        _check_pair(pair)
        return tuple(pair[0]), dict(pair[1])
    bare = unwrapped(guide)
    if isinstance(bare, AutoNormal):
        return args, kwargs  # does not read data
    if isinstance(bare, AutoGuide):
        _fail_joint(bare)
    signature = inspect.signature(guide)
    by_name = {p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    try:
        bound = signature.bind_partial(*args, **kwargs)
    except TypeError as error:
        _fail_unbound(bare, str(error), signature)
    if "observations" in by_name:
        real, shown = bound.arguments.get("observations"), {"observations": data}
    elif data.keys() <= by_name:
        real, shown = bound.arguments, data
    else:
        _fail_unrouted(bare, sorted(data), [str(p) for p in signature.parameters.values()])
    for name, value in data.items():
        if isinstance(real, dict):
            _check_shape(name, value, real.get(name))
        elif subsampled:
            _check_minibatch(name, value, args, kwargs)
    bound.arguments.update(shown)
    return bound.args, bound.kwargs


def check_dreamable(site: Site) -> None:
    """A site can be dreamt if it has a distribution to be sampled from."""
    name, fn = site["name"], base(site["fn"])
    if isinstance(fn, dist.Unit | dist.ImproperUniform):
        what = "a numpyro.factor" if isinstance(fn, dist.Unit) else "an improper prior"
        fail(
            ValueError,
            f"sleep cannot dream from the model: site {name!r} is {what}, which cannot be sampled",
            expected="a model made of proper distributions",
            found=f"{what} at site {name!r}",
            hint="write it as numpyro.sample with a proper distribution, or use insomnia=1.0",
        )


def check_dream(run: Trace, observed_sites: tuple[str, ...]) -> None:
    """There must be data to dream."""
    samples = {name: site for name, site in run.items() if site["type"] == "sample"}
    unknown = sorted(set(observed_sites) - samples.keys())
    if unknown:
        fail(
            ValueError,
            f"option 'observed_sites' names {unknown}, which the model does not have",
            expected=f"some of the model's sample sites {sorted(samples)}",
            found=f"{unknown}",
            hint="list the names of the sites that hold data, as in observed_sites=('x',)",
        )
    for name in run:
        if {f"{name}_observed", f"{name}_unobserved"} <= samples.keys():
            fail(
                ValueError,
                f"sleep cannot dream site {name!r}, which is observed in part by obs_mask",
                expected="sample sites that are observed as a whole or not at all",
                found=f"obs_mask=... at site {name!r}",
                hint="hide missing data by numpyro.handlers.mask, or use insomnia=1.0",
            )
    if not any(site["is_observed"] for site in samples.values()):
        fail(
            ValueError,
            "sleep has no data to dream: the model has no observed site",
            expected="a sample site with obs=..., or option 'observed_sites'",
            found=f"latent sites {sorted(samples)}",
            hint="for a model that runs without data, name its data sites, as in observed_sites=('x',)",
        )


def with_other_data(
    program: Program, args: tuple, kwargs: dict, observed: dict[str, Any], dreamt: dict[str, Any]
) -> Iterator[tuple]:
    """For each argument that holds the data of an observed site: the site, and the arguments with dreamt data there.

    An argument holds them if it is named as the site, or if it is or contains the very array that the site observes.
    """
    try:
        bound = inspect.signature(program).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):  # not every callable tells
        return
    for name, value in observed.items():
        is_value = lambda leaf, value=value: leaf is value
        if name in bound.arguments:
            holders, holds = [name], lambda leaf: True
        else:
            holders = [a for a, real in bound.arguments.items() if any(map(is_value, jax.tree.leaves(real)))]
            holds = is_value
        if len(holders) == 1:  # the same array in two arguments is data in the one and a covariate in the other
            real = bound.arguments[holders[0]]
            other = jax.tree.map(partial(_other, holds=holds, dreamt=dreamt[name]), real)
            shown = inspect.BoundArguments(bound.signature, bound.arguments | {holders[0]: other})
            yield name, shown.args, shown.kwargs


def _other(real: Any, holds: Callable[[Any], bool], dreamt: jax.Array) -> Any:
    """Dreamt data in place of real ones; where they are a minibatch, the real ones in another order."""
    if not (holds(real) and isinstance(real, jax.Array | np.ndarray | int | float)):
        return real
    if jnp.shape(real) == jnp.shape(dreamt):
        return dreamt.astype(jnp.asarray(real).dtype)
    return jnp.flip(real) if jnp.ndim(real) else real


def fail_reads_data(name: str) -> NoReturn:
    """Parts of a dream would be real data."""
    fail(
        ValueError,
        f"the model's dreams depend on the real data of observed site {name!r}",
        expected="a model that reads them by obs=... alone: it has to dream up all data by itself",
        found="dreams that change with the data, for the same seed",
        hint="pass what is not to be dreamt (totals, a shifted copy) as an argument of its own, let a scan carry what"
        " is, or use insomnia=1.0",
    )


def _check_minibatch(name: str, dreamt: Any, args: tuple, kwargs: dict) -> None:
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


def _check_shape(name: str, dreamt: Any, real: Any) -> None:
    """Dreams have the shape of the real data that they stand in for."""
    if real is not None and jnp.shape(real) != jnp.shape(dreamt):
        fail(
            ValueError,
            f"dreamt and real data differ in shape at observed site {name!r}",
            expected=f"{jnp.shape(real)}, the shape of the guide's real argument",
            found=f"{jnp.shape(dreamt)}, as dreamt by the model",
            hint="pass the data (the minibatch, not the full data) in the shape that the model gives them, or say by"
            " simulated_data_to_args what the guide is to see",
        )


def _check_pair(value: Any) -> None:
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


def _fail_joint(guide: AutoGuide) -> NoReturn:
    """Dreams are values of the model's latents; such guides score points, or another variable."""
    fail(
        ValueError,
        f"sleep cannot train the automatic guide {_name(guide)}: it is a point, or draws latents through another site",
        expected="a guide with a density for each latent site",
        found=f"{_name(guide)}",
        hint="use AutoNormal, or insomnia=1.0",
    )


def _fail_unrouted(guide: Callable[..., Any], observed: list[str], parameters: list[str]) -> NoReturn:
    """Sleep has nowhere to put its dreams, and would train on real data in silence."""
    fail(
        ValueError,
        f"sleep cannot hand its dreams to the guide {_name(guide)}",
        expected=f"guide arguments named as the observed sites {observed}, or one named 'observations'",
        found=f"arguments {parameters}",
        hint="rename the guide's data argument, or pass simulated_data_to_args="
        "lambda sim, *args, **kwargs: (guide_args, guide_kwargs)",
    )


def _fail_unbound(guide: Any, problem: str, signature: inspect.Signature) -> NoReturn:
    fail(
        TypeError,
        f"the guide {_name(guide)} cannot be called with the arguments of the model: {problem}",
        expected="model and guide to take the same arguments",
        found=f"{_name(guide)}{signature}",
        hint="give the guide the model's arguments, or say by simulated_data_to_args what it is to get",
    )


def _name(guide: Any) -> str:
    return repr(getattr(guide, "__name__", type(guide).__name__))
