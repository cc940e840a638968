"""The loss of sleep: of the guide, by dreams of the model."""

from typing import Any

import jax
from jax.sharding import NamedSharding

from rws_jax.arguments import programs_of
from rws_jax.core.layers import Params, ProgramFn
from rws_jax.options import ExecutionOptions, SleepOptions
from rws_jax.programs.observations import SimulatedDataToArgs


def sleep_phi_loss(
    theta: Params,
    phi: Params,
    model: ProgramFn,
    guide: ProgramFn,
    /,
    *args: Any,
    num_particles: int = 2,
    simulated_data_to_args: SimulatedDataToArgs | None = None,
    observed_sites: tuple[str, ...] = (),
    vectorize_particles: bool = True,
    chunk_size: int | None = None,
    particle_sharding: NamedSharding | None = None,
    data_axes: Any = None,
    data_chunk_size: int | None = None,
    **kwargs: Any,
) -> jax.Array:
    r"""The cross-entropy from the model's dreams to the guide, which trains the guide on simulated data.

    .. math:: L_\phi = -\frac1S \sum_s \log q_\phi(z_s \mid x_s), \qquad (z_s, x_s) \sim p_\theta(z, x)

    (Hinton et al. 1995; Le et al. 2019). Also known as CSIS, inference compilation, neural posterior
    estimation and forward-KL amortised inference. Gradient: reaches `phi` alone; that of `theta` is exactly zero.
    Bias: none, for data that follow the model.

    The model runs with its real arguments, which give shapes and covariates, and draws its observed sites anew. It must
    read data by ``obs=`` alone: an autoregressive one is a `numpyro.contrib.control_flow.scan` that carries its site.

    The guide is called with the same arguments, dreamt data in place of real ones: by `simulated_data_to_args` if
    given, else in the argument, or array within one, that the model observes, in arguments named as the observed sites
    and as ``observations``, a dict keyed by site. Where the model masks a site, real values stay.

    Args:
      theta: `numpyro.param` site of the model -> constrained value. Keys of other sites are ignored.
      phi: the same for the guide.
      model: NumPyro model, seeded.
      guide: NumPyro guide, seeded.
      *args: arguments of both programs.
      num_particles: S, the number of dreams, each as large as the data; at least 1.
      simulated_data_to_args: ``(data, *args, **kwargs) -> (args, kwargs)`` of the guide, `data` keyed by site.
      observed_sites: names of data sites of a model that runs without data.
      vectorize_particles: whether dreams are mapped over; this and the following as in `wake_phi_loss`.
      chunk_size: dreams in memory at a time.
      particle_sharding: over which devices they are spread.
      data_axes: axes of the data in `args`.
      data_chunk_size: data in memory at a time.
      **kwargs: keyword arguments of both programs.

    Returns:
      Scalar loss in nats, summed over units; ``inf`` if a dream lies outside of the guide's support.

    Raises:
      ValueError: if programs or parameters do not match, dreams cannot be drawn or shown, or real data come into them.
      TypeError: if a program is not seeded, `num_particles` is no int, or `simulated_data_to_args` returns no pair.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, rws_jax
      >>> from numpyro.handlers import seed
      >>> def model(x=None):
      ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
      ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x=None):
      ...     numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0) * x, 1.0))
      >>> def loss(phi):
      ...     programs = seed(model, jax.random.key(0)), seed(guide, jax.random.key(1))
      ...     return rws_jax.sleep_phi_loss({}, phi, *programs, num_particles=10_000, observed_sites=("x",))
      >>> gradient = jax.grad(loss)({"a": jnp.array(0.0)})["a"]
      >>> bool(jnp.abs(gradient + 1.0) < 0.1)  # -E[z x] = -1, exactly
      True

    References:
      Hinton et al., The wake-sleep algorithm for unsupervised neural networks, Science 268, 1995.
      Le, Baydin and Wood, Inference Compilation and Universal Probabilistic Programming, 2017, arXiv 1610.09900.
      Le et al., Revisiting Reweighted Wake-Sleep, 2019, arXiv 1805.10469.
    """
    options = SleepOptions(num_particles, simulated_data_to_args, observed_sites)
    execution = ExecutionOptions(vectorize_particles, chunk_size, particle_sharding, data_axes, data_chunk_size)
    execution.check_number(num_particles, "num_particles", 1)
    programs = programs_of(sleep_phi_loss, theta, phi, model, guide, args, kwargs)
    return options.estimator.checked(execution.executor(), programs)
