"""`importance_sample` and `sample_posterior`: the latents of given data, by a trained guide and the model's weights."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax

from rws_jax.arguments import trained_programs_of
from rws_jax.checks.arguments import check_int, check_rng_key
from rws_jax.core.layers import Params, ProgramFn
from rws_jax.estimators.wake import WeighedSteps
from rws_jax.execution.ragged import Ragged
from rws_jax.options import RunOptions, SamplingOptions
from rws_jax.options.taking import takes
from rws_jax.posterior.running import run
from rws_jax.posterior.samples.weighted import WeightedSamples
from rws_jax.posterior.samples.weighted_draw import Dims, GuideDrawParticle, WeightedDrawParticle


@takes(SamplingOptions)
def importance_sample(
    options: SamplingOptions,
    rng_key: jax.Array,
    params: Params,
    model: ProgramFn,
    guide: ProgramFn,
    /,
    *args: Any,
    **kwargs: Any,
) -> WeightedSamples:
    r"""Draw latents from the guide, and weigh them by the model: posterior samples, evidence and how far to trust them.

    .. math:: z_k \sim q_\phi(z \mid x), \qquad \log w_k = \log p_\theta(z_k, x) - \log q_\phi(z_k \mid x)

    for every unit: each element of the plates that are common to all sites has weights of its own, and so has each
    datum of `data_axes`. Bias: the evidence :math:`\frac1K \sum_k w_k` has none, its logarithm and self-normalised
    expectations :math:`O(1/K)`. Gradient: reaches the model's parameters through log p; draws and log q are constants.

    Compiled once for each kind of arguments. As by `jax.jit`, what has been compiled of two programs is kept: a global
    variable or an attribute that they read, and that has changed since, is not seen. This goes for all functions that
    take trained programs.

    Args:
      rng_key: JAX random key.
      params: constrained values of the parameters of both programs, as ``rws.get_params(state, *args)`` gives them.
      model: NumPyro model, not seeded.
      guide: NumPyro guide, not seeded.
      *args: arguments of both programs, data that the guide has never seen among them.
      options: how particles are drawn and run.
      **kwargs: keyword arguments of both programs.

    Returns:
      `WeightedSamples`.

    Raises:
      ValueError: if programs or parameters do not match, an option is out of range, or an argument is named as one.
      TypeError: if `params` are taken from a state, which holds unconstrained values; if a program is no function; for
        an option of the wrong type.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, rws_jax
      >>> def model(x):
      ...     with numpyro.plate("data", len(x)):
      ...         z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
      ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x):
      ...     with numpyro.plate("data", len(x)):
      ...         numpyro.sample("z", dist.Normal(numpyro.param("a", 0.5) * x, 1.0))
      >>> params, x = {"m": 1.0, "a": 0.5}, jnp.array([0.0, 3.0])
      >>> weighted = rws_jax.importance_sample(jax.random.key(0), params, model, guide, x, num_particles=10_000)
      >>> weighted.log_evidence()  # exactly -1.516 and -2.266
      Estimate([-1.518 -2.265] ± [0.006 0.006])
      >>> weighted.expectation().value["z"].round(1)  # posterior means (m + x) / 2
      Array([0.5, 2. ], dtype=float32)

    References:
      Owen, Monte Carlo theory, methods and examples, 2013, chapter 9.
    """
    programs = trained_programs_of(importance_sample, options, rng_key, params, model, guide, args, kwargs)
    drawn = run(WeightedDrawParticle(options.wake.estimator.particle), programs, options.num, options.execution)
    plates = {name for _, dims in drawn.latents.kinds if isinstance(dims, tuple) for name in dims}
    data = () if options.data.count(programs) is None else (_free_name("datum", plates),)
    dims = {name: data + dims for name, dims in drawn.latents.kinds if isinstance(dims, tuple)}
    return WeightedSamples(
        samples=drawn.latents.values,
        log_weights=drawn.log_weights,
        present=drawn.latents.present,
        dims=tuple(dims.items()),
        units=data + drawn.units,
        scale=drawn.scale,
        resampled=drawn.steps is not None,
        nested=options.num_local_particles > 1,
        filtering=drawn.steps and _filtering(drawn.steps, dims, data),
    )


@takes(RunOptions)
def sample_posterior(
    options: RunOptions,
    rng_key: jax.Array,
    params: Params,
    model: ProgramFn,
    guide: ProgramFn,
    /,
    *args: Any,
    num_samples: int,
    num_particles: int | None = None,
    **kwargs: Any,
) -> dict[str, jax.Array]:
    """Draw samples of the latents, as `numpyro.infer.Predictive` takes them.

    With `num_particles` they are resampled by weight from so many particles of each unit, and follow the posterior as
    these grow; without, they are the guide's own, and as good as the guide is.

    Args:
      rng_key: JAX random key.
      params: constrained values of the parameters of both programs, as ``rws.get_params(state, *args)`` gives them.
      model: NumPyro model, not seeded.
      guide: NumPyro guide, not seeded.
      *args: arguments of both programs.
      num_samples: how many samples, at least 1.
      num_particles: how many particles they are resampled from; None for the guide's own samples.
      options: how they run.
      **kwargs: keyword arguments of both programs; with `num_particles` also the options of `importance_sample`.

    Returns:
      Site -> samples, shape ``(num_samples, *shape)``, where `shape` is that of the site in the program, and before it
      the number of data if there are `data_axes`.

    Raises:
      ValueError: as `importance_sample`.
      TypeError: as `importance_sample`.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, rws_jax
      >>> def model(x):
      ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
      ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x):
      ...     numpyro.sample("z", dist.Normal(0.0, 1.0))  # which ignores x
      >>> draw = lambda **how: rws_jax.sample_posterior(jax.random.key(0), {}, model, guide, 2.0, **how)["z"]
      >>> print(f"{draw(num_samples=1000).mean():.1f} {draw(num_samples=1000, num_particles=10_000).mean():.1f}")
      -0.0 1.0
    """
    expected, hint = "an int >= 1, how many samples to draw", "pass num_samples=1000, say"
    check_int(num_samples, "num_samples", 1, expected=expected, hint=hint)
    if num_particles is None:
        options.check_number(num_samples, "num_samples", 1)
        programs = trained_programs_of(sample_posterior, options, rng_key, params, model, guide, args, kwargs)
        drawn: Ragged = run(GuideDrawParticle(), programs, num_samples, options.execution)
        return drawn.values
    check_rng_key(rng_key, "the first argument of sample_posterior", "pass jax.random.key(0), say")
    sample_key, resample_key = jax.random.split(rng_key)
    how = {option.name: getattr(options, option.name) for option in fields(options)}
    weighted = importance_sample(sample_key, params, model, guide, *args, num_particles=num_particles, **how, **kwargs)
    return weighted.resample(resample_key, num_samples)


def _filtering(steps: WeighedSteps, dims: Mapping[str, Dims], data: tuple[str, ...]) -> WeightedSamples:
    """Draws of each step, which is a unit: the first axis of a site of a scan."""
    step = _free_name("step", {name for own in dims.values() for name in own})
    num = len(data)
    of_steps = {name: (*own[:num], step, *own[num + 1 :]) for name, own in dims.items() if name in steps.latents}
    samples = {name: steps.latents[name] for name in of_steps}
    return WeightedSamples(samples, steps.log_weights, {}, tuple(of_steps.items()), (*data, step), resampled=True)


def _free_name(name: str, taken: set[str | None]) -> str:
    """The name, or one that no plate has."""
    return name if name not in taken else _free_name(f"{name}_", taken)
