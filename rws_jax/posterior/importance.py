"""`importance_sample` and `sample_posterior`: the latents of given data, by a trained guide and the model's weights."""

from typing import Any

import jax
from jax.sharding import NamedSharding

from rws_jax.arguments import trained_programs_of
from rws_jax.checks.arguments import check_int, check_rng_key
from rws_jax.core.layers import MutableState, Params, ProgramFn
from rws_jax.execution.data import Data
from rws_jax.execution.ragged import Ragged
from rws_jax.options import ExecutionOptions, WakeOptions
from rws_jax.posterior.running import run
from rws_jax.posterior.weighted import WeightedSamples
from rws_jax.posterior.weighted_draw import GuideDrawParticle, WeightedDrawParticle
from rws_jax.programs.program import Programs


def importance_sample(
    rng_key: jax.Array,
    params: Params,
    model: ProgramFn,
    guide: ProgramFn,
    /,
    *args: Any,
    num_particles: int = 1000,
    defensive: float = 0.0,
    defensive_guide: ProgramFn | None = None,
    vectorize_particles: bool = True,
    chunk_size: int | None = None,
    particle_sharding: NamedSharding | None = None,
    data_axes: Any = None,
    mutable_state: MutableState | None = None,
    **kwargs: Any,
) -> WeightedSamples:
    r"""Draw latents from the guide, and weigh them by the model: posterior samples, evidence and how far to trust them.

    .. math:: z_k \sim q_\phi(z \mid x), \qquad \log w_k = \log p_\theta(z_k, x) - \log q_\phi(z_k \mid x)

    for every unit: each element of the plates that are common to all sites has weights of its own, and so has each
    datum of `data_axes`. Bias: the evidence :math:`\frac1K \sum_k w_k` has none, its logarithm and self-normalised
    expectations :math:`O(1/K)`. Compiled once for each kind of arguments.

    Args:
      rng_key: JAX random key.
      params: constrained values of the parameters of both programs, as ``rws.get_params(state, *args)`` gives them.
      model: NumPyro model, not seeded.
      guide: NumPyro guide, not seeded.
      *args: arguments of both programs, data that the guide has never seen among them.
      num_particles: K, particles of each unit, at least 1.
      defensive: share of particles that do not come from the guide; this and the following as in `wake_phi_loss`.
      defensive_guide: program that they come from, not seeded; default the model's prior.
      vectorize_particles: whether particles are mapped over; if not, they run un-jitted, one by one.
      chunk_size: particles that run at a time. Draws and log-weights of all are kept.
      particle_sharding: over which devices they are spread.
      data_axes: axes of the data in `args`, for programs of one datum.
      mutable_state: ``state.mutable_state``, for programs that have some.
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
    wake = WakeOptions(num_particles, defensive=defensive, defensive_guide=defensive_guide)
    execution = ExecutionOptions(vectorize_particles, chunk_size, particle_sharding, data_axes)
    execution.check_number(num_particles, "num_particles", 1)
    given = rng_key, params, model, guide, args, kwargs
    programs = trained_programs_of(importance_sample, *given, u=defensive_guide, mutable_state=mutable_state)
    drawn = run(WeightedDrawParticle(wake.estimator.particle), programs, num_particles, execution)
    data = _data_axis(execution, programs)
    return WeightedSamples(
        samples=drawn.latents.values,
        log_weights=drawn.log_weights,
        present=drawn.latents.present,
        dims=tuple((name, data + dims) for name, dims in drawn.latents.kinds if isinstance(dims, tuple)),
        units=data + drawn.units,
        scale=drawn.scale,
    )


def sample_posterior(
    rng_key: jax.Array,
    params: Params,
    model: ProgramFn,
    guide: ProgramFn,
    /,
    *args: Any,
    num_samples: int,
    num_particles: int | None = None,
    vectorize_particles: bool = True,
    chunk_size: int | None = None,
    particle_sharding: NamedSharding | None = None,
    data_axes: Any = None,
    mutable_state: MutableState | None = None,
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
      vectorize_particles: whether particles are mapped over; this and the following as in `importance_sample`.
      chunk_size: particles that run at a time.
      particle_sharding: over which devices they are spread.
      data_axes: axes of the data in `args`, for programs of one datum.
      mutable_state: ``state.mutable_state``, for programs that have some.
      **kwargs: keyword arguments of both programs.

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
    how = {"chunk_size": chunk_size, "particle_sharding": particle_sharding, "data_axes": data_axes}
    how["vectorize_particles"] = vectorize_particles
    if num_particles is None:
        execution = ExecutionOptions(**how)
        execution.check_number(num_samples, "num_samples", 1)
        given = rng_key, params, model, guide, args, kwargs
        programs = trained_programs_of(sample_posterior, *given, mutable_state=mutable_state)
        drawn: Ragged = run(GuideDrawParticle(), programs, num_samples, execution)
        return drawn.values
    check_rng_key(rng_key, "the first argument of sample_posterior", "pass jax.random.key(0), say")
    sample_key, resample_key = jax.random.split(rng_key)
    how |= {"num_particles": num_particles, "mutable_state": mutable_state}
    weighted = importance_sample(sample_key, params, model, guide, *args, **how, **kwargs)
    return weighted.resample(resample_key, num_samples)


def _data_axis(execution: ExecutionOptions, programs: Programs) -> tuple[str, ...]:
    """The name of the axis of data, if there is one."""
    return () if Data(execution.data_axes).count(programs) is None else ("datum",)
