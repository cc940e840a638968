"""All particles at once: one run of a program, mapped over particle indices.

A particle's draw depends on the seed and on its index alone, not on how many particles there are or how they are
grouped, so callers may pass any part of ``arange(num_particles)``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax import lax

from rws_jax import matching, sites
from rws_jax.density import Units
from rws_jax.dreams import show_data
from rws_jax.programs import Draws, Params, Program, again, draws_of, dreamt, sampled, scored


@partial(jax.tree_util.register_dataclass, data_fields=["log_p", "log_q"], meta_fields=["scale"])
@dataclass(frozen=True)
class Particles:
    """Log densities of particles in nats, shape ``(particles, *units)``.

    A sum over units has to be multiplied by `scale` (size / subsample size) to estimate the sum over the full data.
    """

    log_p: jax.Array
    log_q: jax.Array
    scale: float


@partial(jax.tree_util.register_dataclass, data_fields=["log_q"], meta_fields=["scale"])
@dataclass(frozen=True)
class Dreams:
    """The same for dreams, which are scored by the guide alone."""

    log_q: jax.Array
    scale: float


# Axes of `Draws` for vmap: latents by particle, one minibatch for all of them.
_axes: Any = (0, None)
_DRAWS = Draws(*_axes)


def draw_particles(guide: Program, phi: Params, indices: jax.Array, args: tuple, kwargs: dict) -> Draws:
    """Draw latents from the seeded guide; each has shape ``(particles, *site shape)``."""
    phi = lax.stop_gradient(phi)  # drawn particles are constants: no pathwise gradient, from one site to the next too

    def draw(index: jax.Array) -> Draws:
        run = sampled(guide, "guide", phi, index, args, kwargs)
        sites.check_guide(run)
        return draws_of(run)

    return jax.vmap(draw, out_axes=_DRAWS)(indices)


def score_particles(
    model: Program,
    guide: Program,
    theta: Params,
    phi: Params,
    draws: Draws,
    indices: jax.Array,
    args: tuple,
    kwargs: dict,
) -> Particles:
    """Log p(z, x) and log q(z | x) of particles drawn by `draw_particles`."""

    def score(draws: Draws, index: jax.Array) -> Particles:
        guide_run = scored(again(guide), "guide", phi, index, draws, args, kwargs)
        model_run = scored(model, "model", theta, index, draws, args, kwargs, drawn_in=guide_run)
        matching.check_match(model_run, guide_run)
        units = Units.of(model_run, guide_run)
        log_p = units.log_density(model_run, draws.latents, guide_run)
        log_q = units.log_density(guide_run, draws.latents, guide_run)
        return Particles(log_p, log_q, units.scale)

    return jax.vmap(score, in_axes=(_DRAWS, 0))(draws, indices)


def dream(
    model: Program, theta: Params, indices: jax.Array, args: tuple, kwargs: dict, observed_sites: tuple[str, ...]
) -> tuple[Draws, dict[str, jax.Array]]:
    """Draw latents and data together from the seeded model."""
    theta = lax.stop_gradient(theta)  # dreams are training data of the guide: theta learns nothing from them

    def draw(index: jax.Array) -> tuple[Draws, dict[str, jax.Array]]:
        run, data = dreamt(model, theta, index, args, kwargs, observed_sites)
        return draws_of(run), data

    return jax.vmap(draw, out_axes=(_DRAWS, 0))(indices)


def score_dreams(
    guide: Program,
    phi: Params,
    draws: Draws,
    data: dict[str, jax.Array],
    indices: jax.Array,
    args: tuple,
    kwargs: dict,
    simulated_data_to_args: Callable | None,
) -> Dreams:
    """Log q(z | x) of dreams drawn by `dream`."""

    def score(draws: Draws, data: dict[str, jax.Array], index: jax.Array) -> Dreams:
        guide_args, guide_kwargs = show_data(
            guide, data, args, kwargs, simulated_data_to_args, subsampled=bool(draws.plates)
        )
        run = scored(guide, "guide", phi, index, draws, guide_args, guide_kwargs)
        sites.check_guide(run)
        matching.check_none_missing(draws.latents, run)
        units = Units.of(run)
        return Dreams(units.log_density(run, draws.latents, {}), units.scale)

    return jax.vmap(score, in_axes=(_DRAWS, 0, 0))(draws, data, indices)
