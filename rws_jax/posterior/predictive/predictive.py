"""`posterior_predictive`: new data from posterior samples."""

from collections.abc import Iterable
from typing import Any

import jax

from rws_jax.arguments import trained_programs_of
from rws_jax.checks.arguments import check_rng_key
from rws_jax.checks.predictive import (
    check_drawn,
    check_drawn_anew,
    check_no_guide,
    check_weighted,
)
from rws_jax.core.layers import Params, ProgramFn
from rws_jax.options import RunOptions
from rws_jax.options.taking import takes
from rws_jax.posterior.predictive.kept import check_num_samples, resampled, with_samples
from rws_jax.posterior.predictive.predictive_particles import PredictiveParticle
from rws_jax.posterior.running import run
from rws_jax.posterior.samples.weighted import WeightedSamples


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
      sites. Where programs branch, numbers that a sample does not have are NaN or, in sites of whole
      numbers, the least of their type.

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
    check_num_samples(num_samples)
    resample_key, run_key = jax.random.split(rng_key)
    given = run_key, params, model, model, args, kwargs  # there is no guide
    programs = trained_programs_of(posterior_predictive, options, *given)
    kept = resampled(weighted, weighted.indices(resample_key, num_samples), draw_anew)
    programs, execution = with_samples(programs, options.execution, weighted, kept)
    drawn = run(PredictiveParticle(), programs, num_samples, execution).values
    check_drawn(drawn, kept.values)
    return drawn
