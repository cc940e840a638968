"""All particles: one run of a program for each index, mapped over or one by one.

A particle's draw depends on the seed and on its index alone, not on how many particles there are or how they are
grouped, so callers may pass any part of ``arange(num_particles)``. Particles are mapped over if the indices are an
array. If they are a range or a list, each runs on its own, and its sites may be others than its neighbours'.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from rws_jax import matching, sites, validation, weights
from rws_jax.defensive import Defence, draw_defensive, draw_on_path
from rws_jax.density import Units, itself, those_of
from rws_jax.dreams import show_data
from rws_jax.programs import Call, Draws, draws_of, dreamt, sampled, scored
from rws_jax.sites import Trace

Indices = jax.Array | Sequence


@partial(jax.tree_util.register_dataclass, data_fields=["log_p", "log_q", "log_r", "path"], meta_fields=["scale"])
@dataclass(frozen=True)
class Particles:
    """Log densities of particles in nats, shape ``(particles, *units)``.

    They were drawn from r, which is the guide's q itself if `log_r` is None. A sum over units has to be multiplied by
    `scale` (size / subsample size) to estimate the sum over the full data. `path` holds the log-weights as functions of
    the draws alone, through which the gradient of reparameterised ones passes.
    """

    log_p: jax.Array
    log_q: jax.Array
    scale: float
    log_r: jax.Array | None = None
    path: jax.Array | None = None

    @property
    def log_weights(self) -> jax.Array:
        """``log p - log r``; all that phi is trained on beside log q, and constant to it."""
        log_r = self.log_q if self.log_r is None else self.log_r
        return weights.log_weights(self.log_p, jax.lax.stop_gradient(log_r))  # the bound does not train the guide


@partial(jax.tree_util.register_dataclass, data_fields=["log_q"], meta_fields=["scale"])
@dataclass(frozen=True)
class Dreams:
    """The same for dreams, which are scored by the guide alone."""

    log_q: jax.Array
    scale: float


# Axes of `Draws` for vmap: latents by particle, one minibatch for all of them.
_axes: Any = (0, None)
_DRAWS = Draws(*_axes)


def draw_particles(
    guide: Call, indices: Indices, defence: Defence | None = None, *, reparameterised: bool = False
) -> Any:
    """Draw latents from the guide, or from its mixture with a defence.

    `Draws` of shapes ``(particles, *site shape)``, or a list of `Draws` one by one. Reparameterised ones are functions
    of the guide's parameters, all others constants.
    """
    if not reparameterised:
        guide = guide.stopped()  # no pathwise gradient, from one site to the next too

    def draw(index: Any) -> Draws:
        if defence is not None and guide.walk is not None:
            return draw_on_path(defence, guide, index)
        run = sampled(guide, index)
        sites.check_guide(run)
        if reparameterised:
            sites.check_reparameterised(run)
        if defence is None:
            return draws_of(run)
        return draw_defensive(defence, guide, run, index, whole=not isinstance(indices, jax.Array))

    if not isinstance(indices, jax.Array):
        return _each(draw, indices)
    return _map(draw, out_axes=_DRAWS)(indices)


def score_particles(
    model: Call,
    guide: Call,
    draws: Any,
    indices: Indices,
    defence: Defence | None = None,
    *,
    reparameterised: bool = False,
) -> Particles:
    """Log p(z, x), log q(z | x) and, with a defence, log r(z | x) of particles drawn by `draw_particles`."""

    def runs(draws: Draws, index: Any) -> tuple[Trace, ...]:
        guide_run = scored(guide, index, draws, drawn_from=itself if defence else None)
        model_run = scored(model, index, draws, drawn_from=those_of(guide_run))
        matching.check_match(model_run, guide_run, same_supports=reparameterised)
        if defence is None or defence.guide is None:
            return guide_run, model_run
        defensive_run = scored(defence.guide, index, draws, drawn_from=those_of(guide_run))
        matching.check_defensive_match(guide_run, defensive_run)
        return guide_run, model_run, defensive_run

    def score(units: Units, runs: Sequence[Trace], draws: Draws) -> Particles:
        guide_run, model_run = runs[:2]
        log_p = units.log_density(model_run, draws.latents, those_of(guide_run))
        log_q = units.log_density(guide_run, draws.latents, itself)
        log_r = None
        if reparameterised:
            sites.check_unscaled(guide_run, units.scale, "gradient='dreg'")
        if defence is not None:
            sites.check_unscaled(guide_run, units.scale, "'defensive'")
            log_u = units.log_proposal(runs[-1], draws.latents, those_of(guide_run))
            log_r = weights.log_mixture(log_q, log_u, defence.delta)
        return Particles(log_p, log_q, units.scale, log_r)

    if not isinstance(indices, jax.Array):
        all_runs = _each(runs, draws, indices)
        units = Units.of(*chain.from_iterable(all_runs))
        if len({frozenset(one.latents) for one in draws}) > 1:
            units = units.joint()  # programs branch, and what they branch on may be any of the units
        return _stack(_each(partial(score, units), all_runs, draws))

    def score_one(draws: Draws, index: jax.Array) -> Particles:
        all_runs = runs(draws, index)
        return score(Units.of(*all_runs), all_runs, draws)

    return _map(score_one, in_axes=(_DRAWS, 0))(draws, indices)


def dream(model: Call, indices: Indices, observed_sites: tuple[str, ...]) -> Any:
    """Draw latents and data together from the model: the pair of them, or a list of pairs."""
    model = model.stopped()  # dreams are training data of the guide: theta learns nothing from them

    def draw(index: Any) -> tuple[Draws, dict[str, jax.Array]]:
        run, data = dreamt(model, index, observed_sites)
        return draws_of(run), data

    if not isinstance(indices, jax.Array):
        return _each(draw, indices)
    return _map(draw, out_axes=(_DRAWS, 0))(indices)


def score_dreams(guide: Call, dreams: Any, indices: Indices, simulated_data_to_args: Callable | None) -> Dreams:
    """Log q(z | x) of dreams drawn by `dream`."""

    def run(draws: Draws, data: dict[str, jax.Array], index: Any) -> Trace:
        args, kwargs = show_data(
            guide.program, data, guide.args, guide.kwargs, simulated_data_to_args, subsampled=bool(draws.plates)
        )
        guide_run = scored(guide._replace(args=args, kwargs=kwargs), index, draws)
        sites.check_guide(guide_run)
        matching.check_none_missing(draws.latents, guide_run)
        return guide_run

    def score(units: Units, run: Trace, draws: Draws) -> Dreams:
        return Dreams(units.log_density(run, draws.latents, lambda site: None), units.scale)

    if not isinstance(indices, jax.Array):
        latents, data = zip(*dreams, strict=True)
        all_runs = _each(run, latents, data, indices)
        return _stack(_each(partial(score, Units.of(*all_runs)), all_runs, latents))

    def score_one(draws: Draws, data: dict[str, jax.Array], index: jax.Array) -> Dreams:
        guide_run = run(draws, data, index)
        return score(Units.of(guide_run), guide_run, draws)

    draws, data = dreams
    return _map(score_one, in_axes=(_DRAWS, 0, 0))(draws, data, indices)


def _map(fn: Callable, in_axes: Any = 0, out_axes: Any = 0) -> Callable:
    """`jax.vmap`; a program that branches in Python on a value drawn in it is told of the alternatives."""

    def mapped(*args: Any) -> Any:
        try:
            return jax.vmap(fn, in_axes, out_axes)(*args)
        except validation.BRANCHES as error:
            validation.fail_static(error)

    return mapped


def _each(fn: Callable, *particles: Any) -> list[Any]:
    """The same one by one."""
    try:
        return [fn(*one) for one in zip(*particles, strict=True)]
    except validation.BRANCHES as error:
        if isinstance(particles[-1][0], Tracer):  # on a path, which knows what to say
            raise
        validation.fail_jitted(error)


def _stack(particles: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *particles)
