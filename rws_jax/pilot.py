"""One particle of each phase, run once: how `init` meets the programs, and where a mismatch comes to light."""

from collections.abc import Callable

import jax
from jax.core import Tracer
from numpyro.handlers import seed

from rws_jax import matching, sites
from rws_jax.density import Units, count_outside
from rws_jax.dreams import show_data
from rws_jax.programs import Params, Program, again, draws_of, dreamt, sampled, scored
from rws_jax.sites import Trace


def run_pilot(
    model: Program,
    guide: Program,
    theta: Params | None,
    phi: Params | None,
    rng_key: jax.Array,
    args: tuple,
    kwargs: dict,
    *,
    wake: bool,
    sleep: bool,
    simulated_data_to_args: Callable | None,
    observed_sites: tuple[str, ...],
) -> tuple[Trace, Trace]:
    """Run model and guide as the chosen phases do, and check that they fit together.

    Args:
      model: bare model.
      guide: bare guide.
      theta: values of the model's param sites; None for their initial values.
      phi: the same for the guide.
      rng_key: seeds both programs.
      args: arguments of both programs.
      kwargs: keyword arguments of both programs.
      wake: whether the guide is trained on wake-phi. Wake is run as well if the model has parameters.
      sleep: whether the guide is trained on sleep-phi.
      simulated_data_to_args: as in `sleep_phi_loss`.
      observed_sites: as in `sleep_phi_loss`.

    Returns:
      A trace of the model and one of the guide.
    """
    model_key, guide_key = jax.random.split(rng_key)
    model, guide = seed(model, model_key), seed(guide, guide_key)
    if sleep:
        model_run, data = dreamt(model, theta, 0, args, kwargs, observed_sites)
        draws = draws_of(model_run)
        guide_args, guide_kwargs = show_data(
            guide, data, args, kwargs, simulated_data_to_args, subsampled=bool(draws.plates)
        )
        guide_run = scored(guide, "guide", phi, 0, draws, guide_args, guide_kwargs)
        sites.check_guide(guide_run)
        _check(model_run, guide_run)
        wake = wake or any(site["type"] == "param" for site in model_run.values())
    if wake:
        guide_run = sampled(again(guide), "guide", phi, 0, args, kwargs)
        sites.check_guide(guide_run)
        model_run = scored(again(model), "model", theta, 0, draws_of(guide_run), args, kwargs, drawn_in=guide_run)
        _check(model_run, guide_run)
        _check_data(model_run)
    return model_run, guide_run


def _check(model_run: Trace, guide_run: Trace) -> None:
    matching.check_match(model_run, guide_run)
    Units.of(model_run, guide_run)


def _check_data(model_run: Trace) -> None:
    for name, site in model_run.items():
        if site["type"] == "sample" and site["is_observed"]:
            num_outside = count_outside(site["fn"], site["value"])
            sites.check_data(name, 0 if isinstance(num_outside, Tracer) else int(num_outside))
