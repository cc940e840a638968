"""Pairs of latents and data that are given in the place of a model's dreams."""

from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from rws_jax.core.errors import describe, fail

_HINT = "pairs={'z': latents, 'x': data}, with an axis of pairs in front of each array"


def check_pairs(pairs: Any) -> None:
    """One dict of arrays, or two, all with one number of pairs."""
    several = isinstance(pairs, tuple | list)
    parts: Any = pairs if several and len(pairs) == 2 else [pairs]
    if not all(isinstance(part, Mapping) for part in parts):
        fail(
            TypeError,
            "option 'pairs' has the wrong type",
            expected="a dict of latents and data by site, or a pair of dicts, of latents and of data",
            found=f"a {type(pairs).__name__} of {len(pairs)}, {_shapes(pairs)}" if several else describe(pairs),
            hint=_HINT,
        )
    sizes = {name: jnp.shape(value)[:1] for part in parts for name, value in part.items()}
    if len(set(sizes.values())) != 1 or () in sizes.values() or (0,) in sizes.values():
        found = ", ".join(f"{jnp.shape(value)} at {name!r}" for part in parts for name, value in part.items())
        fail(
            ValueError,
            "arrays of option 'pairs' do not agree on the number of pairs",
            expected="one number, at least 1, along axis 0 of all arrays",
            found=found or "no array",
            hint=_HINT,
        )


def split_pair(
    model_run: Any, like: Any, pair: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Latents and data of one dict, as a dream has them, without what else the model has: deterministic sites, say."""
    unknown = sorted(pair.keys() - model_run.keys())
    if unknown:
        fail(
            ValueError,
            f"option 'pairs' has {unknown}, which are no sites of the model",
            expected=f"latent sites {sorted(like.draws.latents)} and observed sites {sorted(like.data)}",
            found=f"{sorted(pair)}",
            hint=_HINT,
        )
    latents, data = ({name: pair[name] for name in part if name in pair} for part in (like.draws.latents, like.data))
    return latents, data


def check_num_pairs(num: Any, num_pairs: int) -> int:
    """There is one simulation for each pair."""
    if num is not None and num != num_pairs:
        fail(
            ValueError,
            "option 'num_simulations' is not the number of 'pairs'",
            expected=f"{num_pairs}, or None",
            found=f"{num}",
            hint="leave out num_simulations, or pass as many pairs as it says",
        )
    return num_pairs


def check_pair(like: Any, latents: dict[str, jax.Array], data: dict[str, jax.Array]) -> None:
    """A pair has the sites of a dream, in their shapes."""
    if like.draws.plates:
        fail(
            ValueError,
            f"option 'pairs' does not say which minibatch of plate {sorted(like.draws.plates)[0]!r} its pairs are of",
            expected="programs without subsampled plates",
            found=f"subsampled plates {sorted(like.draws.plates)}",
            hint="leave out subsample_size, and pass the arguments of what the pairs were drawn for",
        )
    for kind, given, sites in (("latent", latents, like.draws.latents), ("observed", data, like.data)):
        if given.keys() != sites.keys():
            fail(
                ValueError,
                f"option 'pairs' does not have the {kind} sites of the model",
                expected=f"{sorted(sites)}",
                found=f"{sorted(given)}",
                hint=_HINT,
            )
        for name, value in given.items():
            if value.shape != sites[name].shape:
                fail(
                    ValueError,
                    f"shapes differ at {kind} site {name!r} of option 'pairs'",
                    expected=f"(pairs, *{sites[name].shape}), as the model draws it",
                    found=f"(pairs, *{value.shape})",
                    hint=_HINT,
                )


def fail_branching_pairs() -> NoReturn:
    """Paths are compiled with values of the sites that Python branches on, which are drawn there."""
    fail(
        ValueError,
        "programs have branching sites, and option 'pairs' gives their values as arrays",
        expected="pairs of programs without branching sites, or vectorize_particles=False",
        found="infer={'branching': True}",
        hint="pass vectorize_particles=False, where particles run one by one",
    )


def _shapes(pairs: Any) -> str:
    """What was passed in place of pairs, in one line."""
    of_one = lambda part: f"{jnp.shape(part)}" if hasattr(part, "shape") else type(part).__name__
    in_dict = lambda part: ", ".join(f"{jnp.shape(value)} at {name!r}" for name, value in part.items())
    return "of " + "; ".join(in_dict(part) if isinstance(part, Mapping) else of_one(part) for part in pairs)
