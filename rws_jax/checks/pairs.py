"""Pairs of latents and data that are given in the place of a model's dreams."""

from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from rws_jax.core.errors import describe, fail

_HINT = "pairs=({'z': latents}, {'x': data}), with an axis of pairs in front of each array"


def check_pairs(pairs: Any) -> None:
    """Two dicts of arrays, all with one number of pairs."""
    if not (isinstance(pairs, tuple | list) and len(pairs) == 2 and all(isinstance(part, Mapping) for part in pairs)):
        fail(
            TypeError,
            "option 'pairs' has the wrong type",
            expected="a pair of dicts, latents by site and data by site",
            found=describe(pairs),
            hint=_HINT,
        )
    sizes = {name: jnp.shape(value)[:1] for part in pairs for name, value in part.items()}
    if len(set(sizes.values())) != 1 or () in sizes.values() or (0,) in sizes.values():
        found = ", ".join(f"{jnp.shape(value)} at {name!r}" for part in pairs for name, value in part.items())
        fail(
            ValueError,
            "arrays of option 'pairs' do not agree on the number of pairs",
            expected="one number, at least 1, along axis 0 of all arrays",
            found=found or "no array",
            hint=_HINT,
        )


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
