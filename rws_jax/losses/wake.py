"""The losses of wake: of the model by the bound, of the guide by weighted particles."""

from typing import Any

import jax
from jax.sharding import NamedSharding

from rws_jax.arguments import programs_of
from rws_jax.core.layers import Params, ProgramFn
from rws_jax.options import ExecutionOptions, StructureOptions, WakeOptions


def wake_theta_loss(
    theta: Params,
    phi: Params,
    model: ProgramFn,
    guide: ProgramFn,
    /,
    *args: Any,
    num_particles: int = 2,
    defensive: float = 0.0,
    defensive_guide: ProgramFn | None = None,
    num_local_particles: int = 1,
    local_numbers: str = "common",
    resample: str | None = None,
    resample_below: float = 0.5,
    vectorize_particles: bool = True,
    chunk_size: int | None = None,
    particle_sharding: NamedSharding | None = None,
    data_axes: Any = None,
    data_chunk_size: int | None = None,
    **kwargs: Any,
) -> jax.Array:
    r"""Minus the importance-weighted bound on the log evidence, which trains the model.

    .. math:: L_\theta = -\log \frac1K \sum_k w_k

    (Burda et al. 2016). Gradient: reaches `theta` alone; that of `phi` is exactly zero.
    Bias: minus the loss is :math:`O(1/K)` below the log evidence in expectation; equal if the guide is the posterior.

    Args:
      theta: `numpyro.param` site of the model -> constrained value. Keys of other sites are ignored.
      phi: the same for the guide.
      model: NumPyro model, seeded: ``numpyro.handlers.seed(model, rng_key)``.
      guide: NumPyro guide, seeded.
      *args: arguments of both programs.
      num_particles: K, at least 2.
      defensive: share of particles that do not come from the guide; this and the following as in `wake_phi_loss`.
      defensive_guide: seeded program that they come from; default the model's prior.
      num_local_particles: particles of latents in inner plates, for each particle.
      local_numbers: whether these have ``"common"`` or ``"independent"`` random numbers.
      resample: ``"systematic"`` to resample along a scan.
      resample_below: for effective sample sizes below this share of the particles.
      vectorize_particles: whether particles are mapped over.
      chunk_size: particles in memory at a time.
      particle_sharding: over which devices they are spread.
      data_axes: axes of the data in `args`.
      data_chunk_size: data in memory at a time.
      **kwargs: keyword arguments of both programs.

    Returns:
      Scalar loss in nats, summed over units; dead units are left out, and it is ``inf`` if all are dead.

    Raises:
      ValueError: if programs or parameters do not match, an option is out of range, or an argument is named as one.
      TypeError: if a program is not seeded, or an option is of the wrong type.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, rws_jax
      >>> from numpyro.handlers import seed
      >>> def model(x):
      ...     z = numpyro.sample("z", dist.Bernoulli(numpyro.param("p", 0.5)))
      ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x):
      ...     numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("b", 0.0)))
      >>> theta, phi = {"p": jnp.array(0.5)}, {"b": jnp.array(0.0)}
      >>> programs = seed(model, jax.random.key(0)), seed(guide, jax.random.key(1))
      >>> loss = rws_jax.wake_theta_loss(theta, phi, *programs, 1.0, num_particles=1000)
      >>> bool(jnp.abs(loss - 1.1380) < 0.02)  # -log p(x = 1), exactly
      True

    References:
      Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016, arXiv 1509.00519.
    """
    structure = StructureOptions(num_local_particles, local_numbers, resample, resample_below)
    options = WakeOptions(num_particles, True, defensive, defensive_guide, structure=structure)
    execution = ExecutionOptions(vectorize_particles, chunk_size, particle_sharding, data_axes, data_chunk_size)
    execution.check_number(num_particles, "num_particles", 2)
    structure.check_runs(execution)
    programs = programs_of(wake_theta_loss, theta, phi, model, guide, args, kwargs, defensive_guide)
    return options.estimator(execution.executor(), programs).theta_loss


def wake_phi_loss(
    theta: Params,
    phi: Params,
    model: ProgramFn,
    guide: ProgramFn,
    /,
    *args: Any,
    num_particles: int = 2,
    control_variate: bool = True,
    defensive: float = 0.0,
    defensive_guide: ProgramFn | None = None,
    gradient: str = "score",
    num_local_particles: int = 1,
    local_numbers: str = "common",
    resample: str | None = None,
    resample_below: float = 0.5,
    vectorize_particles: bool = True,
    chunk_size: int | None = None,
    particle_sharding: NamedSharding | None = None,
    data_axes: Any = None,
    data_chunk_size: int | None = None,
    **kwargs: Any,
) -> jax.Array:
    r"""The cross-entropy from the self-normalised posterior to the guide, which trains the guide on real data.

    .. math:: L_\phi = -\sum_k \bar w_k \log q_\phi(z_k \mid x), \qquad \bar w \text{ held constant}

    (Bornschein and Bengio 2015; Le et al. 2019). Gradient: reaches `phi` alone; that of `theta` is
    exactly zero. Bias: that of self-normalised importance sampling, :math:`O(1/K)`, relative to the gradient of
    :math:`\mathrm{KL}(p(z \mid x) \,\|\, q_\phi)`.

    Two options change the variance of the gradient, and neither the value nor, for every K, the expectation. With a
    control variate it is :math:`-\sum_k (\bar w_k - 1/K) \nabla \log q_\phi(z_k)`, as :math:`E_q \nabla \log q = 0`;
    the variance vanishes where the guide is the posterior. With ``"dreg"`` it is :math:`-\sum_k \bar w_k (1 - \bar w_k)
    \, \partial_z \log w_k \, \partial_\phi z_k` (Tucker et al. 2019), for log-weights continuous in z. All ask for a
    guide whose support does not move with its parameters. A third, ``"vimco"``, is another objective, minus the bound,
    with the score-function gradient and a baseline from the other particles (Mnih and Rezende 2016), without bias.
    Defensive particles come from :math:`r = (1 - \delta) q_\phi + \delta u`, a choice for each particle and unit, and
    weigh :math:`p / r`; their control variate is :math:`(q / r)_k / K`. A guide then keeps what it ceases to propose.

    Args:
      theta: `numpyro.param` site of the model -> constrained value. Keys of other sites are ignored.
      phi: the same for the guide.
      model: NumPyro model, seeded.
      guide: NumPyro guide, seeded.
      *args: arguments of both programs.
      num_particles: K, at least 2.
      control_variate: whether to subtract the control variate; plays a part in ``gradient="score"`` alone.
      defensive: :math:`\delta` in [0, 1); 0.2 is customary.
      defensive_guide: u, a seeded NumPyro guide without parameters; default the model's prior over the latents.
      gradient: ``"score"``, ``"dreg"`` for guides whose every site has `has_rsample`, or ``"vimco"``.
      num_local_particles: L, for latents in plates that not all sites are in. Each element of such a plate has L
        particles, with weights of their own, for each of the K particles of what is outside (Heap and Aitchison 2023).
        With 1 a particle has one weight for all that it draws. Elements may not depend on one another, which `init` of
        `make_step` checks.
      local_numbers: with L above 1, whether these are drawn by ``"common"`` random numbers, the same for all K, or by
        ``"independent"`` ones. Common ones keep the weights of the K particles even where the plate is large.
      resample: ``"systematic"`` to resample particles along the `numpyro.contrib.control_flow.scan` that both programs
        have, in one loop; each draw is then weighed at its own step (Gu et al. 2015), and what is drawn before the
        scan at the end, along ancestors. None for one weight of all steps.
      resample_below: resample after steps at which the effective sample size is below this share of the particles.
      vectorize_particles: whether particles are mapped over. If False, each runs on its own and un-jitted, so programs
        may branch and recurse in Python on sampled values. Where sites differ between particles, all is one unit.
      chunk_size: particles in memory at a time; None for all at once. Each chunk runs twice, and of the others only log
        densities are kept. Results do not depend on it, but for keys of the kind ``rbg``.
      particle_sharding: over which devices particles are spread, ``NamedSharding(mesh, PartitionSpec("particles"))``.
      data_axes: for programs written for one datum, where `args` have the axis of data, as `in_axes` of `jax.vmap`: an
        int, or a tuple with None for what is the same for all data. Of keyword arguments `observations` alone has data,
        along axis 0. Every datum is a unit. By branching sites, ``infer={"branching": True}``, paths are compiled.
      data_chunk_size: with `data_axes`, data in memory at a time, each with all its particles; None for all at once.
        Every chunk runs once, as its gradient is taken along with it; results do not depend on it. Derivatives are
        those of reverse mode alone. Programs that run by paths do so in groups of their own.
      **kwargs: keyword arguments of both programs.

    Returns:
      Scalar loss in nats, summed over units; dead units contribute zero.

    Raises:
      ValueError: if programs or parameters do not match, an option is out of range, or an argument is named as one.
      TypeError: if a program is not seeded, or an option is of the wrong type.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, rws_jax
      >>> from numpyro.handlers import seed
      >>> def model(x):
      ...     z = numpyro.sample("z", dist.Bernoulli(0.5))
      ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x):
      ...     numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("b", 1.0)))
      >>> def loss(phi):
      ...     programs = seed(model, jax.random.key(0)), seed(guide, jax.random.key(1))
      ...     return rws_jax.wake_phi_loss({}, phi, *programs, 1.0, num_particles=10_000)
      >>> gradient = jax.grad(loss)({"b": jnp.array(1.0)})["b"]
      >>> exact = jax.nn.sigmoid(1.0) - jax.nn.sigmoid(0.5)  # q(z = 1) - p(z = 1 | x)
      >>> bool(jnp.abs(gradient - exact) < 0.02)
      True

    References:
      Bornschein and Bengio, Reweighted Wake-Sleep, 2015, arXiv 1406.2751.
      Le et al., Revisiting Reweighted Wake-Sleep, 2019, arXiv 1805.10469.
      Gu, Ghahramani and Turner, Neural Adaptive Sequential Monte Carlo, 2015, arXiv 1506.03338.
      Heap and Aitchison, Massively Parallel Reweighted Wake-Sleep, 2023, arXiv 2305.11022.
      Mnih and Rezende, Variational Inference for Monte Carlo Objectives, 2016, arXiv 1602.06725.
      Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019, arXiv 1810.04152.
    """
    structure = StructureOptions(num_local_particles, local_numbers, resample, resample_below)
    options = WakeOptions(num_particles, control_variate, defensive, defensive_guide, gradient, structure)
    execution = ExecutionOptions(vectorize_particles, chunk_size, particle_sharding, data_axes, data_chunk_size)
    execution.check_number(num_particles, "num_particles", 2)
    structure.check_runs(execution)
    programs = programs_of(wake_phi_loss, theta, phi, model, guide, args, kwargs, defensive_guide)
    return options.estimator(execution.executor(), programs).phi_loss
