"""Training: `make_step` turns a model and a guide into pure functions `init`, `step` and `get_params`."""

from typing import Any

import optax
from jax.sharding import NamedSharding

from rws_jax.checks.arguments import check_program
from rws_jax.checks.options import check_phi_steps
from rws_jax.core.layers import ProgramFn
from rws_jax.execution.branching.path_cache import PathCache
from rws_jax.options import ExecutionOptions, Insomnia, StepOptions, StructureOptions
from rws_jax.programs.handlers import unconstrained
from rws_jax.programs.observations import SimulatedDataToArgs
from rws_jax.training.optimizers import Optimizer
from rws_jax.training.state import RWS
from rws_jax.training.step_loss import StepLoss
from rws_jax.training.trainer import functions_of
from rws_jax.training.updates import Updates

_ADAM = optax.adam(1e-3)


def make_step(
    model: ProgramFn,
    guide: ProgramFn,
    *,
    theta_optimizer: optax.GradientTransformation | optax.MultiSteps = _ADAM,
    phi_optimizer: optax.GradientTransformation | optax.MultiSteps = _ADAM,
    num_particles: int = 2,
    insomnia: Insomnia = 1.0,
    num_sleep_particles: int | None = None,
    phi_steps: int = 1,
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
    compile_after: int = 256,
    max_compiled: int = 1000,
    max_paths: int = 64,
    model_has_params: bool = True,
    shared_params: bool = False,
    simulated_data_to_args: SimulatedDataToArgs | None = None,
    observed_sites: tuple[str, ...] = (),
) -> RWS:
    r"""Reweighted Wake-Sleep for a NumPyro model and guide, as pure functions.

    A step updates the model's parameters on `wake_theta_loss` and the guide's on

    .. math:: \iota \, L_\text{wake-phi} + (1 - \iota) \, L_\text{sleep-phi}, \qquad \iota = \text{insomnia}

    (Le et al. 2019). Both wake losses share one set of particles, and all gradients come from one pass; what the
    chosen insomnia does not need is not computed. `step` is jitted, and can be scanned, vmapped and jitted again.
    Python may branch on sites with ``infer={"branching": True}``: up to `max_paths` paths are compiled as a whole, and
    `step` stays what it is; with more, or unknown ones, each path is compiled by itself, and not `step`.
    Mutable sites (BatchNorm, nnx.Dropout) are carried on by finite steps; dreams see them and leave them alone.

    Args:
      model: NumPyro model; it need not be reparameterisable.
      guide: NumPyro guide, called with the same arguments.
      theta_optimizer: of optax, for the model's parameters; default ``optax.adam(1e-3)``. One that takes the loss, as
        ``value=...``, gets the loss of its own program, `wake_theta_loss` here and `phi_loss` of the info there.
      phi_optimizer: for the guide's parameters; default ``optax.adam(1e-3)``.
      num_particles: K, particles per unit in wake; at least 2 if a wake loss is computed.
      insomnia: share of wake-phi in the guide's loss, in [0, 1], or a schedule: a function of the step count.
      num_sleep_particles: dreams per step, each as large as the data; default `num_particles`.
      phi_steps: updates of the guide, with fresh particles each, for every one of the model. The last shares its
        particles with the model's, and these are what the info reports.
      control_variate: whether wake-phi's gradient has its control variate; see `wake_phi_loss`.
      defensive: share of particles, in [0, 1), that do not come from the guide; see `wake_phi_loss`.
      defensive_guide: NumPyro guide without parameters that they come from; default the model's prior.
      gradient: of wake-phi, ``"score"``, ``"dreg"`` or ``"vimco"``; see `wake_phi_loss`.
      num_local_particles: L, particles of latents in inner plates for each particle; see `wake_phi_loss`.
      local_numbers: whether these have ``"common"`` or ``"independent"`` random numbers.
      resample: ``"systematic"`` to resample particles along a scan; see `wake_phi_loss`.
      resample_below: share of the particles; resampling is for effective sample sizes below it.
      vectorize_particles: whether particles are mapped over. If False, each runs on its own, and `step` is not jitted:
        for programs that branch in Python on sampled values.
      chunk_size: particles, and dreams, in memory at a time; None for all at once. Results do not depend on it, but
        for keys of the kind ``rbg``, which JAX maps over as one.
      particle_sharding: how particles, and dreams, are spread over the devices of a mesh; see `wake_phi_loss`.
      data_axes: for programs written for one datum, where the arguments have the axis of data, as `in_axes` of
        `jax.vmap`; see `wake_phi_loss`.
      data_chunk_size: with `data_axes`, data in memory at a time, each with all its particles; None for all at once. A
        step is one update on all of them, in one pass: large batches in little memory, and faster where what a chunk
        computes stays in the processor's cache. Results do not depend on it, but for keys of the kind ``rbg``.
      max_paths: if programs have branching sites, up to how many paths are compiled as a whole: all are then computed
        for every particle, and one is chosen. Of a loop without bound these are its first rounds. With 1, programs run
        by paths alone; results do not depend on it.
      compile_after: if programs run by paths, how many particles run along a path before it is compiled by itself.
      max_compiled: how many compiled functions of paths are kept; the least recently used ones go.
      model_has_params: set to False to leave out wake-theta in pure sleep; a model with parameters is then an error.
      shared_params: whether param sites may occur in both programs. They start as in the model, are kept in
        `theta`, and are trained by its optimizer on the sum of both losses' gradients.
      simulated_data_to_args: ``(data, *args, **kwargs) -> (args, kwargs)``, how the guide is shown dreamt data; see
        `sleep_phi_loss`.
      observed_sites: names of data sites of a model that runs without data, in pure sleep.

    Returns:
      `RWS`, the functions ``init``, ``step`` and ``get_params``. Of their arguments, arrays and numbers are traced, as
      by `jax.jit`. Booleans of Python, text, enums, functions and what else has a hash are static: programs may branch
      on them, and a step is compiled once for each value. So are namespaces and dataclasses of such values. Arrays of
      other libraries are read by `numpy.asarray`. A number that Python needs to know, a size say, is bound by
      ``functools.partial(model, ...)``.

    Raises:
      ValueError: for an option out of range. From `init`, if model, guide and arguments do not fit together.
      TypeError: for an option of the wrong kind, or an optimizer that needs more than gradients, parameters and loss.
        From all three functions, for an argument that is neither traced nor static.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, rws_jax
      >>> def model(x):
      ...     p = numpyro.param("p", 0.5, constraint=dist.constraints.unit_interval)
      ...     with numpyro.plate("data", len(x)):
      ...         z = numpyro.sample("z", dist.Bernoulli(p))
      ...         numpyro.sample("x", dist.Normal(4.0 * z, 1.0), obs=x)
      >>> def guide(x):
      ...     a, b = numpyro.param("a", 0.0), numpyro.param("b", 0.0)
      ...     with numpyro.plate("data", len(x)):
      ...         numpyro.sample("z", dist.Bernoulli(logits=a * x + b))
      >>> x = jnp.array([-1.0, 0.0, 1.0, 4.0])
      >>> rws = rws_jax.make_step(model, guide, theta_optimizer=optax.adam(0.05), phi_optimizer=optax.adam(0.05))
      >>> state = rws.init(jax.random.key(0), x)
      >>> for _ in range(500):
      ...     state, info = rws.step(state, x)
      >>> bool(jnp.abs(rws.get_params(state, x)["p"] - 0.25) < 0.05)
      True

    References:
      Bornschein and Bengio, Reweighted Wake-Sleep, 2015, arXiv 1406.2751.
      Le et al., Revisiting Reweighted Wake-Sleep, 2019, arXiv 1805.10469.
    """
    check_program(model, "model")
    check_program(guide, "guide")
    optimizers = Optimizer.of(theta_optimizer, "theta_optimizer"), Optimizer.of(phi_optimizer, "phi_optimizer")
    check_phi_steps(phi_steps)
    options = StepOptions(
        execution=ExecutionOptions(vectorize_particles, chunk_size, particle_sharding, data_axes, data_chunk_size),
        num_particles=num_particles,
        insomnia=insomnia,
        num_sleep_particles=num_sleep_particles,
        control_variate=control_variate,
        defensive=defensive,
        defensive_guide=defensive_guide,
        gradient=gradient,
        structure=StructureOptions(num_local_particles, local_numbers, resample, resample_below),
        model_has_params=model_has_params,
        shared_params=shared_params,
        simulated_data_to_args=simulated_data_to_args,
        observed_sites=observed_sites,
    )
    executor = options.execution.executor(PathCache(compile_after, max_compiled, max_paths, trees_at_once=True))
    loss = StepLoss(unconstrained(model), unconstrained(guide), options, executor)
    updates = Updates(*optimizers, has_dreams=options.sleep is not None)
    return functions_of(loss, updates, phi_steps)
