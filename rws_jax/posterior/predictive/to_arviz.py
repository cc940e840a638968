"""`to_arviz`: all that is known after inference, as ArviZ takes it."""

import warnings
from typing import Any

import jax
import numpy as np

from rws_jax.arguments import trained_programs_of
from rws_jax.checks.arguments import check_rng_key
from rws_jax.checks.predictive import (
    check_known,
    check_no_guide,
    check_weighted,
)
from rws_jax.core.layers import Params, ProgramFn
from rws_jax.execution.data import ALL_DATA
from rws_jax.execution.ragged import Ragged
from rws_jax.options import RunOptions
from rws_jax.options.taking import takes
from rws_jax.posterior.predictive.inference_data import Group, inference_data, note_of_own_latents
from rws_jax.posterior.predictive.kept import check_num_samples, resampled, with_samples
from rws_jax.posterior.predictive.predictive_particles import PredictiveParticle, RealParticle, ScoreParticle
from rws_jax.posterior.running import run
from rws_jax.posterior.samples.psis import pareto_smoothed
from rws_jax.posterior.samples.summary import advice
from rws_jax.posterior.samples.weighted import WeightedSamples


@takes(RunOptions)
def to_arviz(
    options: RunOptions,
    weighted: WeightedSamples,
    rng_key: jax.Array,
    params: Params,
    model: ProgramFn,
    /,
    *args: Any,
    num_samples: int = 1000,
    **kwargs: Any,
) -> Any:
    """Hand weighted samples to ArviZ: posterior, predictions, pointwise log-likelihood, data, and trust in the weights.

    Groups, all of `num_samples` draws in one chain, of equal weight, resampled as by `weighted.resample`:

    - ``posterior``: latents, and deterministic sites of the model.
    - ``sample_stats``: ``log_weight``, the log-weight of the particle that each draw is a copy of, and numbers for each
      unit, which have no draws: ``log_evidence``, ``effective_sample_size`` of the weights and ``pareto_k``, which is
      NaN for particles that were resampled along a scan.
    - ``log_likelihood``: log densities of the data at each draw, for each event of each observed site, in nats, for
      `arviz.loo` and `arviz.compare`. `numpyro.factor` is no observation and not among them. What is masked, by
      `numpyro.handlers.mask` or ``obs_mask``, has zeros, which add nothing to leave-one-out but count as observations
      of it: leave them out by ``log_likelihood.isel``.
    - ``observed_data``, and ``posterior_predictive``, data drawn anew as by `posterior_predictive`.

    Axes have the names of their plates, ``"datum"`` with `data_axes`, or those that ArviZ gives, ``site_dim_0``. Draws
    are independent of one another but for copies, so that ArviZ's own ESS and R-hat say nothing here:
    ``sample_stats.effective_sample_size`` does.

    Leave-one-out from ``log_likelihood`` is right for data that share their latents. Where each datum has latents of
    its own, as wherever units are data, it is far too optimistic, as these latents have seen the datum that is left
    out: ArviZ warns of its k-hat, and the attribute ``log_likelihood.leave_one_out`` names the sites. Compare models by
    ``weighted.log_evidence()`` or `evaluate` then. Where units are data and parameters are fixed, the sum of
    ``sample_stats.log_evidence`` is the expected log predictive density that leave-one-out is after, exactly.

    Args:
      weighted: posterior samples, from `importance_sample`.
      rng_key: JAX random key.
      params: constrained values of the model's parameters; those of the guide may be among them.
      model: NumPyro model, not seeded.
      *args: arguments of the model, those that `importance_sample` had.
      num_samples: how many draws.
      options: how samples run, each as a particle.
      **kwargs: keyword arguments of the model.

    Returns:
      `arviz.InferenceData` or, from ArviZ 1.0 on, `xarray.DataTree`.

    Raises:
      ImportError: if ArviZ is not installed.
      ValueError: if posterior samples do not fit into the model with these arguments, or an option is out of range.
      TypeError: if `weighted` is something else, for a guide among the arguments, for an option of the wrong type, or
        inside of `jax.jit`.
    """
    hint = "as to_arviz(weighted, rng_key, params, model, *args); no guide is passed"
    check_weighted(weighted, WeightedSamples, "to_arviz", hint)
    check_no_guide(model, args, kwargs, hint)
    check_rng_key(rng_key, "the second argument of to_arviz", "pass jax.random.key(0), say")
    check_num_samples(num_samples)
    resample_key, run_key = jax.random.split(rng_key)
    check_known("to_arviz", (weighted, resample_key, params, args, kwargs))
    given = run_key, params, model, model, args, kwargs  # there is no guide
    programs = trained_programs_of(to_arviz, options, *given)
    indices = weighted.indices(resample_key, num_samples)
    kept = resampled(weighted, indices)
    programs, execution = with_samples(programs, options.execution, weighted, kept)
    scores = run(ScoreParticle(), programs, num_samples, execution)
    predicted = run(PredictiveParticle(), programs, num_samples, execution)
    # One sample has all data that there are, unless it depends on samples which sites are observed.
    real = run(RealParticle(), programs, num_samples if scores.log_likelihood.present else 1, execution)
    log_weights = np.asarray(weighted.log_weights)
    is_known = not weighted.resampled  # the weights of resampled particles have no tail that says anything
    k = pareto_smoothed(log_weights)[1] if is_known else np.full(log_weights.shape[1:], np.nan)
    if text := advice(weighted, k):
        warnings.warn(text, stacklevel=3)  # past the decorator, to the caller
    of_draws = np.take_along_axis(log_weights, np.asarray(indices), axis=0)
    lead = () if options.data == ALL_DATA else weighted.units[:1]
    group = lambda ragged: Group(ragged.values, {name: (*lead, *dims) for name, dims in ragged.kinds})
    latents, log_likelihood = Group(kept.values, dict(weighted.dims)), group(scores.log_likelihood)
    return inference_data(
        {
            "posterior": latents.beside(group(scores.deterministic)),
            "sample_stats": Group({"log_weight": of_draws}, {"log_weight": weighted.units}),
            "log_likelihood": log_likelihood,
            "posterior_predictive": group(predicted).without(scores.deterministic.values),
        },
        observed_data=group(_of_first(real.data)),
        per_unit=Group(
            {
                "log_evidence": weighted.log_evidence().value,
                "effective_sample_size": weighted.effective_sample_size(),
                "pareto_k": k,
            },
            dict.fromkeys(("log_evidence", "effective_sample_size", "pareto_k"), weighted.units),
        ),
        coords=_coords(real.indices) if options.data == ALL_DATA else {},
        notes={"log_likelihood": note_of_own_latents(log_likelihood, latents, weighted.units)},
    )


def _of_first(ragged: Ragged) -> Ragged:
    """Of each name the first sample that has it; no axis of samples is left."""
    has = {name: np.asarray(there).reshape(len(there), -1).any(axis=1) for name, there in ragged.present.items()}
    first = {name: int(np.argmax(has[name])) if name in has else 0 for name in ragged.values}
    return Ragged({name: value[first[name]] for name, value in ragged.values.items()}, {}, ragged.kinds)


def _coords(indices: Ragged) -> dict[str, jax.Array]:
    """The indices of each plate; not of one whose size differs from sample to sample, whose axis is numbered."""
    return {name: index[0] for name, index in indices.values.items() if name not in indices.present}
