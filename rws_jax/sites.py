"""Sites of one program, and what they must not be."""

from collections.abc import Iterable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer

from rws_jax.validation import fail

Site = dict[str, Any]
Trace = dict[str, Site]


def latent_sites(run: Trace) -> Trace:
    """The unobserved sample sites of a trace."""
    return {name: site for name, site in run.items() if site["type"] == "sample" and not site["is_observed"]}


def plate_size(runs: Iterable[Trace], frame: Any) -> int:
    """The full size of a plate; its `frame` knows the subsample only. Plates inside scan leave no record."""
    return next((run[frame.name]["args"][0] for run in runs if frame.name in run), frame.size)


def base(fn: Any) -> Any:
    """A distribution without the expansions, masks and event dimensions put around it."""
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


def fail_unseeded(role: str, site: Site) -> NoReturn:
    """A program asked for randomness and no handler gave it a key."""
    where = f"{site['type']} site {site['name']!r}" if "name" in site else f"a {site['type']} statement"
    fail(
        TypeError,
        f"the {role} is not seeded: {where} has no random key",
        expected="a program wrapped in numpyro.handlers.seed",
        found="a bare program",
        hint=f"pass numpyro.handlers.seed({role}, rng_key)",
    )


def check_in_control_flow(role: str, site: Site) -> None:
    """In the bodies of scan and cond, NumPyro neither trains parameters nor scales subsampled plates."""
    if site["type"] == "param" or (site["type"] == "plate" and site["value"] is None):
        what, full = {"param": ("param", "numpyro.param"), "plate": ("subsampled plate", "numpyro.plate")}[site["type"]]
        fail(
            ValueError,
            f"{what} {site['name']!r} of the {role} is inside a scan or cond body, where NumPyro does not support it",
            expected=f"no {what} in bodies of numpyro.contrib.control_flow",
            found=f"{full}({site['name']!r}, ...) inside of one",
            hint="let the body close over a parameter taken before it"
            if site["type"] == "param"
            else "pass the minibatch as an argument, and give the plate its size",
        )


def check_param(role: str, name: str, values: dict[str, Any]) -> None:
    """A param site must have a value."""
    if name not in values:
        symbol = "theta" if role == "model" else "phi"
        fail(
            ValueError,
            f"param site {name!r} of the {role} has no value in {symbol}",
            expected=f"{symbol} to have the key {name!r}",
            found=f"keys {sorted(values)}",
            hint=f"{symbol} holds a value for each numpyro.param of the {role}; a state belongs to the programs it"
            " was made with",
        )


def check_supported(role: str, run: Trace) -> None:
    """Mutable state would keep its first value for ever."""
    for name, site in run.items():
        if site["type"] == "mutable":
            fail(
                ValueError,
                f"the {role} has mutable site {name!r}, and mutable state is not supported",
                expected="a program without mutable sites",
                found=f"mutable({name!r})",
                hint="use layers without running statistics, LayerNorm in place of BatchNorm",
            )


def check_guide(run: Trace) -> None:
    """A guide proposes latents; it does not score data."""
    for name, site in run.items():
        if site["type"] == "sample" and site["is_observed"]:
            factor = isinstance(site["fn"], dist.Unit)
            fail(
                ValueError,
                f"the guide has {'a factor at' if factor else 'observed'} site {name!r}",
                expected="latent sample sites only",
                found=f"numpyro.factor({name!r}, ...)" if factor else f"numpyro.sample({name!r}, ..., obs=...)",
                hint="move it to the model; a guide reads data as ordinary arguments",
            )


def check_initial(params: dict[str, Any]) -> None:
    """A parameter cannot be trained from where its unconstrained value is infinite."""
    for name, value in params.items():
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(value)]
        if not all(isinstance(leaf, Tracer) or bool(leaf) for leaf in finite):
            fail(
                ValueError,
                f"param site {name!r} starts at the edge of its constraint, or is not finite",
                expected="an initial value in the interior",
                found="an unconstrained value that is infinite or NaN",
                hint="start a positive parameter at 1e-3, say, rather than at 0",
            )


def check_data(name: str, num_outside: int) -> None:
    """Data that are NaN, or outside of a support whatever the parameters, would be left out at every step."""
    if num_outside:
        fail(
            ValueError,
            f"data at observed site {name!r} are NaN or outside of the support of their distribution",
            expected="data that the model can produce",
            found=f"{num_outside} such values",
            hint="clean the data, or hide missing values by numpyro.handlers.mask",
        )
