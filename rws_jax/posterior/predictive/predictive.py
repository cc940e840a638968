"""After inference: new data from posterior samples, and all of it as ArviZ takes it."""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from rws_jax.arguments import trained_programs_of
from rws_jax.checks.arguments import check_int, check_rng_key
from rws_jax.checks.predictive import (
    check_drawn,
    check_drawn_anew,
    check_known,
    check_no_guide,
    check_same_data,
    check_weighted,
)
from rws_jax.core.layers import Params, ProgramFn
from rws_jax.execution.data import ALL_DATA
from rws_jax.execution.ragged import Ragged
from rws_jax.options import ExecutionOptions, RunOptions
from rws_jax.options.taking import takes
from rws_jax.posterior.predictive.inference_data import Group, inference_data, note_of_own_latents
from rws_jax.posterior.predictive.predictive_particles import PredictiveParticle, RealParticle, ScoreParticle
from rws_jax.posterior.running import run
from rws_jax.posterior.samples.psis import pareto_smoothed
from rws_jax.posterior.samples.summary import advice
from rws_jax.posterior.samples.weighted import WeightedSamples
from rws_jax.programs.predict import Kept
from rws_jax.programs.program import Arguments, Programs


@takes(RunOptions)
def posterior_predictive(
    options: RunOptions,
    rng_key: jax.Array,
    params: Params,
    model: ProgramFn,
    weighted: WeightedSamples,
    /,
    *args: Any,
    num_samples: int | None = None,
    draw_anew: str | Iterable[str] = (),
    **kwargs: Any,
) -> dict[str, jax.Array]:
    r"""Draw new data from the model at posterior samples.

    .. math:: z_s \sim p_\theta(z \mid x), \qquad x'_s \sim p_\theta(x' \mid z_s)

    Latents are resampled by their weights, each unit's by itself. Observed sites are drawn anew, also where real data
    are passed for them: these only give shapes. What `numpyro.handlers.condition` gives and no latent bears upon is a
    covariate, and stays; `numpyro.factor` plays no part.

    The arguments may be others than those of `importance_sample`: new covariates, say. All latents are kept, also those
    that belong to a datum: with as many data, the first one is predicted by the latents of the first one that
    `importance_sample` had. Where the data are other ones, name every latent that belongs to a datum in `draw_anew`: it
    is drawn from the model, given those that are kept. If it is not named and its shape changes, this is an error.

    A minibatch that is passed as an argument, in a plate with a `subsample_size` whose indices the model does not use,
    goes with its latents by position.

    Args:
      rng_key: JAX random key.
      params: constrained values of the model's parameters, as ``rws.get_params(state, *args)`` gives them; those of the
        guide may be among them.
      model: NumPyro model, not seeded.
      weighted: posterior samples of its latents, from `importance_sample`.
      *args: arguments of the model.
      num_samples: how many samples; None for as many as there are particles.
      draw_anew: latent sites that are drawn from the model, in place of their posterior samples; or one such site.
      options: how samples run, each as a particle.
      **kwargs: keyword arguments of the model.

    Returns:
      Site -> draws, shape ``(num_samples, *shape)``, where `shape` is that of the site in the model, and before it the
      number of data if there are `data_axes`: observed sites, latents that have no posterior samples, deterministic
      sites. Where programs branch, numbers that a sample does not have are NaN, or zero in sites of whole numbers.

    Raises:
      ValueError: if posterior samples do not fit into the model with these arguments, if nothing is left to be drawn,
        or if an option is out of range.
      TypeError: if `weighted` is something else, for a guide among the arguments, or for an option of the wrong type.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, rws_jax
      >>> def model(x):
      ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
      ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x):
      ...     numpyro.sample("z", dist.Normal(0.0, 1.0))
      >>> weighted = rws_jax.importance_sample(jax.random.key(0), {}, model, guide, 2.0, num_particles=10_000)
      >>> x = rws_jax.posterior_predictive(jax.random.key(1), {}, model, weighted, 2.0)["x"]
      >>> print(x.shape, f"{x.mean():.1f} {x.var():.1f}")  # exactly 1 and 1.5
      (10000,) 1.0 1.5

    References:
      Gelman et al., Bayesian Data Analysis, 3rd edition, 2013, chapter 6.
    """
    hint = "as posterior_predictive(rng_key, params, model, weighted, *args); no guide is passed"
    check_weighted(weighted, WeightedSamples, "posterior_predictive", hint)
    check_no_guide(model, args, kwargs, hint)
    check_rng_key(rng_key, "the first argument of posterior_predictive", "pass jax.random.key(0), say")
    draw_anew = (draw_anew,) if isinstance(draw_anew, str) else tuple(draw_anew)
    check_drawn_anew(draw_anew, weighted.samples)
    num_samples = len(weighted.log_weights) if num_samples is None else num_samples
    _check_num_samples(num_samples)
    resample_key, run_key = jax.random.split(rng_key)
    given = run_key, params, model, model, args, kwargs  # there is no guide
    programs = trained_programs_of(posterior_predictive, options, *given)
    kept = _resampled(weighted, weighted.indices(resample_key, num_samples), draw_anew)
    programs, execution = _with_samples(programs, options.execution, weighted, kept)
    drawn = run(PredictiveParticle(), programs, num_samples, execution).values
    check_drawn(drawn, kept.values)
    return drawn


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
      unit, which have no draws: ``log_evidence``, ``effective_sample_size`` of the weights and ``pareto_k``.
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
    _check_num_samples(num_samples)
    resample_key, run_key = jax.random.split(rng_key)
    check_known("to_arviz", (weighted, resample_key, params, args, kwargs))
    given = run_key, params, model, model, args, kwargs  # there is no guide
    programs = trained_programs_of(to_arviz, options, *given)
    indices = weighted.indices(resample_key, num_samples)
    kept = _resampled(weighted, indices)
    programs, execution = _with_samples(programs, options.execution, weighted, kept)
    scores = run(ScoreParticle(), programs, num_samples, execution)
    predicted = run(PredictiveParticle(), programs, num_samples, execution)
    # One sample has all data that there are, unless it depends on samples which sites are observed.
    real = run(RealParticle(), programs, num_samples if scores.log_likelihood.present else 1, execution)
    log_weights = np.asarray(weighted.log_weights)
    k = pareto_smoothed(log_weights)[1]
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


def _check_num_samples(num_samples: Any) -> None:
    expected, hint = "an int >= 1, how many samples to draw", "pass num_samples=1000, say"
    check_int(num_samples, "num_samples", 1, expected=expected, hint=hint)


def _resampled(weighted: WeightedSamples, indices: jax.Array, but: tuple[str, ...] = ()) -> Kept:
    """Posterior samples of equal weight, and which of their numbers are there."""
    present = replace(weighted, samples=weighted.present)
    return Kept(
        {name: weighted.taken(name, indices) for name in weighted.samples if name not in but},
        {name: present.taken(name, indices) for name in weighted.present if name not in but},
    )


def _with_samples(
    programs: Programs, execution: ExecutionOptions, weighted: WeightedSamples, kept: Kept
) -> tuple[Programs, ExecutionOptions]:
    """Pass posterior samples to particles as one argument more, which has all of them for each datum."""
    args, kwargs = programs.arguments
    if kept.values:
        check_same_data(execution.data.count(programs), weighted.units, weighted.log_weights.shape[1:])
    return programs.with_arguments(Arguments((*args, kept), kwargs)), execution.with_argument(len(args), axis=1)


def _of_first(ragged: Ragged) -> Ragged:
    """Of each name the first sample that has it; no axis of samples is left."""
    has = {name: np.asarray(there).reshape(len(there), -1).any(axis=1) for name, there in ragged.present.items()}
    first = {name: int(np.argmax(has[name])) if name in has else 0 for name in ragged.values}
    return Ragged({name: value[first[name]] for name, value in ragged.values.items()}, {}, ragged.kinds)


def _coords(indices: Ragged) -> dict[str, jax.Array]:
    """The indices of each plate; not of one whose size differs from sample to sample, whose axis is numbered."""
    return {name: index[0] for name, index in indices.values.items() if name not in indices.present}
