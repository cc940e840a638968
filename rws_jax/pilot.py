"""One particle of each phase, run once: how `init` meets the programs, and where a mismatch comes to light."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from rws_jax import dreams, matching, sites, validation
from rws_jax.defensive import Defence, draw_defensive
from rws_jax.density import Units, those_of
from rws_jax.leaks import check_reads_no_data, check_shows_no_data
from rws_jax.particles import score_particles
from rws_jax.paths import Choice, Pinned, fail_unannotated
from rws_jax.phases import Phases
from rws_jax.programs import Call, draws_of, dreamt, param_values, sampled, scored
from rws_jax.sites import Trace
from rws_jax.supports import bounds, check_fixed, count_outside, warn_of_narrower
from rws_jax.trees import trainable


def run_pilot(
    model: Call,
    guide: Call,
    defence: Defence | None,
    phases: Phases,
    index: Any = 0,
) -> tuple[Trace, Trace]:
    """Run model and guide as the chosen phases do, and check that they fit together.

    Args:
      model: the model, seeded.
      guide: the guide, seeded.
      defence: what else particles are drawn from.
      phases: which of them are run. Wake is run as well if the model has parameters.
      index: of the particle.

    Returns:
      A trace of the model and one of the guide.
    """
    wake, sleep, trains_on_wake = phases.wake, phases.sleep, phases.trains_on_wake
    runs_wake = trains_on_wake
    layout = wake.layout
    look = layout.branching.look if layout.branching and layout.vectorize_particles else lambda *runs: None
    if sleep:
        model_run, data = dreamt(model, index, sleep.observed_sites)
        check_reads_no_data(model, index, model_run, data, sleep)
        draws = draws_of(model_run)
        args, kwargs = dreams.show_data(
            guide.program, data, guide.args, guide.kwargs, sleep.simulated_data_to_args, subsampled=bool(draws.plates)
        )
        guide_run = scored(guide._replace(args=args, kwargs=kwargs), index, draws)
        look(model_run, guide_run)
        _check(model_run, guide_run)
        check_shows_no_data(model, guide._replace(args=args, kwargs=kwargs), index, guide_run, data)
        runs_wake = trains_on_wake or any(site["type"] == "param" for site in model_run.values())
    if runs_wake:
        guide_run = sampled(guide, index)
        sites.check_guide(guide_run)
        if wake.gradient == "dreg":
            sites.check_reparameterised(guide_run)
        model_run = scored(model, index, draws_of(guide_run), drawn_from=those_of(guide_run))
        look(model_run, guide_run)
        _check(model_run, guide_run, pathwise=trains_on_wake and wake.gradient == "dreg")
        if trains_on_wake and (wake.control_variate or wake.gradient == "dreg"):
            _check_fixed_support(guide, index, guide_run)
        sites.warn_of_auxiliary(guide_run, model_run)
        for name, site in sites.latent_sites(model_run).items():
            warn_of_narrower(name, guide_run[name]["fn"], site["fn"])
        _check_data(model_run)
        if defence:
            draws = draw_defensive(defence, guide, guide_run, index, whole=not layout.maps_particles)
            score_particles(model, guide, [draws], range(index, index + 1), defence)
    return model_run, guide_run


def check_compiles(run: Callable, rng_key: jax.Array, args: tuple, kwargs: dict, latents: Trace) -> None:
    """Programs that need concrete values have run in `init`, and would fail in the compiled step only.

    If they do, it is found out on which of the `latents` Python branches: with its value known, they do not fail.
    """

    def error_with(known: list[Choice]) -> Exception | None:
        def traced(rng_key: jax.Array, args: tuple, kwargs: dict) -> None:
            with jax.ensure_compile_time_eval() if known else nullcontext():  # Python may compute with what is known
                run(rng_key, args, kwargs, walk=Pinned(known) if known else None)

        try:
            jax.eval_shape(traced, rng_key, args, kwargs)
        except TypeError as error:  # JAX's errors on tracers are of this kind
            return error

    error = error_with([])
    if error is None:
        return
    discrete = [Choice.of(name, site["value"]) for name, site in latents.items() if site["fn"].is_discrete]
    for known in ([*([one] for one in discrete), discrete]) if isinstance(error, validation.BRANCHES) else ():
        if known and error_with(known) is None:
            fail_unannotated(error, [choice.name for choice in known])
    validation.fail_static(error)


def _check(model_run: Trace, guide_run: Trace, *, pathwise: bool = False) -> None:
    sites.check_guide(guide_run)
    matching.check_match(model_run, guide_run, same_supports=pathwise)
    units = Units.of(model_run, guide_run)
    if pathwise:
        sites.check_unscaled(guide_run, units.scale, "gradient='dreg'")


def _check_fixed_support(guide: Call, index: Any, run: Trace) -> None:
    """The control variate and the pathwise gradient need a support that does not move with the parameters."""
    phi = trainable(param_values(run))

    def edges(phi: Any) -> dict[str, tuple]:
        again = scored(guide._replace(params=phi), index, draws_of(run))
        return {name: bounds(site["fn"]) for name, site in sites.latent_sites(again).items()}

    direction = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) + 1.1, phi)
    _, tangents = jax.jvp(edges, (phi,), (direction,))
    for name, moves in tangents.items():
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(moves)):
            check_fixed(name, moves)


def _check_data(model_run: Trace) -> None:
    for name, site in model_run.items():
        if site["type"] == "sample" and site["is_observed"]:
            num_outside = count_outside(site["fn"], site["value"])
            sites.check_data(name, 0 if isinstance(num_outside, Tracer) else int(num_outside))
