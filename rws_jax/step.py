"""Training: `make_step` turns a model and a guide into pure functions `init`, `step` and `get_params`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding

from rws_jax import devices, options, resume, sites, validation
from rws_jax.branching import Branching
from rws_jax.dispatch import Dispatched
from rws_jax.handlers import Params, Program, unconstrained
from rws_jax.layout import Layout
from rws_jax.objective import Objective
from rws_jax.phases import Phases
from rws_jax.pilot import check_compiles
from rws_jax.programs import constrained_values, param_values
from rws_jax.sites import Trace
from rws_jax.state import RWS, RWSInfo, RWSState
from rws_jax.trees import strong, trainable
from rws_jax.updates import Updates

_ADAM = optax.adam(1e-3)


def make_step(
    model: Program,
    guide: Program,
    *,
    theta_optimizer: optax.GradientTransformation = _ADAM,
    phi_optimizer: optax.GradientTransformation = _ADAM,
    num_particles: int = 2,
    insomnia: float | Callable[[jax.Array], Any] = 1.0,
    num_sleep_particles: int | None = None,
    phi_steps: int = 1,
    control_variate: bool = True,
    defensive: float = 0.0,
    defensive_guide: Program | None = None,
    gradient: str = "score",
    vectorize_particles: bool = True,
    chunk_size: int | None = None,
    particle_sharding: NamedSharding | None = None,
    data_axes: Any = None,
    compile_after: int = 32,
    max_compiled: int = 1000,
    model_has_params: bool = True,
    shared_params: bool = False,
    simulated_data_to_args: Callable[..., tuple[tuple, dict]] | None = None,
    observed_sites: tuple[str, ...] = (),
) -> RWS:
    r"""Reweighted Wake-Sleep for a NumPyro model and guide, as pure functions.

    A step updates the model's parameters on `wake_theta_loss` and the guide's on

    .. math:: \iota \, L_\text{wake-phi} + (1 - \iota) \, L_\text{sleep-phi}, \qquad \iota = \text{insomnia}

    (Le et al. 2019). Both wake losses share one set of particles, and all gradients come from one pass; what the
    chosen insomnia does not need is not computed. `step` is jitted, and can be scanned, vmapped and jitted again. But
    Python may branch on sites with ``infer={"branching": True}``: then each path is compiled by itself, not `step`.

    Args:
      model: NumPyro model; it need not be reparameterisable.
      guide: NumPyro guide, called with the same arguments.
      theta_optimizer: for the model's parameters; default ``optax.adam(1e-3)``.
      phi_optimizer: for the guide's parameters; default ``optax.adam(1e-3)``.
      num_particles: K, particles per unit in wake; at least 2 if a wake loss is computed.
      insomnia: share of wake-phi in the guide's loss, in [0, 1], or a schedule: a function of the step count.
      num_sleep_particles: dreams per step, each as large as the data; default `num_particles`.
      phi_steps: updates of the guide, with fresh particles each, for every one of the model. The last shares its
        particles with the model's, and it is these that the info tells of.
      control_variate: whether wake-phi's gradient has its control variate; see `wake_phi_loss`.
      defensive: share of particles, in [0, 1), that do not come from the guide; see `wake_phi_loss`.
      defensive_guide: NumPyro guide without parameters that they come from; default the model's prior.
      gradient: of wake-phi, ``"score"`` or ``"dreg"``; see `wake_phi_loss`.
      vectorize_particles: whether particles are mapped over. If False, each runs on its own, and `step` is not jitted:
        for programs that branch in Python on sampled values.
      chunk_size: particles, and dreams, in memory at a time; None for all at once. Results do not depend on it.
      particle_sharding: how particles, and dreams, are spread over the devices of a mesh; see `wake_phi_loss`.
      data_axes: for programs written for one datum, where the arguments have the axis of data, as `in_axes` of
        `jax.vmap`; see `wake_phi_loss`.
      compile_after: if programs have branching sites, how many particles run along a path before it is compiled.
      max_compiled: how many compiled functions of paths are kept; the least recently used ones go.
      model_has_params: set to False to leave out wake-theta in pure sleep; a model with parameters is then an error.
      shared_params: whether param sites may occur in both programs. They start as in the model, are kept in
        `theta`, and are trained by its optimizer on the sum of both losses' gradients.
      simulated_data_to_args: ``(data, *args, **kwargs) -> (args, kwargs)``, how the guide is shown dreamt data; see
        `sleep_phi_loss`.
      observed_sites: names of data sites of a model that runs without data, in pure sleep.

    Returns:
      `RWS`, the functions ``init``, ``step`` and ``get_params``. Arguments of `step` are traced, as by `jax.jit`; bind
      static ones with `functools.partial`.

    Raises:
      ValueError: for an option out of range. From `init`, if model, guide and arguments do not fit together.
      TypeError: for an option of the wrong kind.

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
    validation.check_program(model, "model")
    validation.check_program(guide, "guide")
    validation.check_optimizer(theta_optimizer, "theta_optimizer")
    validation.check_optimizer(phi_optimizer, "phi_optimizer")
    options.check_phi_steps(phi_steps)
    branching = Branching(compile_after, max_compiled)
    layout = Layout(vectorize_particles, chunk_size, particle_sharding, data_axes, branching)
    phases = Phases.of(
        num_particles=num_particles,
        insomnia=insomnia,
        num_sleep_particles=num_sleep_particles,
        control_variate=control_variate,
        defensive=defensive,
        defensive_guide=defensive_guide,
        gradient=gradient,
        layout=layout,
        model_has_params=model_has_params,
        shared_params=shared_params,
        simulated_data_to_args=simulated_data_to_args,
        observed_sites=observed_sites,
    )
    objective = Objective(model=unconstrained(model), guide=unconstrained(guide), phases=phases)

    def init(rng_key: jax.Array, /, *args: Any, **kwargs: Any) -> RWSState:
        validation.check_rng_key(rng_key, "the first argument of init", "call rws.init(jax.random.key(0), *args)")
        rng_key, pilot_key, _ = jax.random.split(rng_key, 3)  # the first of three goes on, as in NumPyro's SVI
        with devices.on_automatic_axes((pilot_key, args, kwargs)) as placed:
            theta, phi = devices.automatic(initial)(*placed)
        opt_states = strong(theta_optimizer.init(theta)), strong(phi_optimizer.init(phi))
        state = RWSState(theta, phi, *opt_states, rng_key=rng_key, step=jnp.zeros((), jnp.int32))
        if callable(insomnia):
            options.check_scheduled_insomnia(insomnia(state.step))
        known.add(state)
        return devices.everywhere(state, (args, kwargs), particle_sharding)

    def initial(rng_key: jax.Array, args: tuple, kwargs: dict) -> tuple[Params, Params]:
        theta_sites, phi_sites = Trace(), Trace()
        for index in range(num_particles):
            runs = objective.pilot(None, None, jax.random.clone(rng_key), args, kwargs, index)
            theta_sites, phi_sites = sites.param_sites(runs[0]) | theta_sites, sites.param_sites(runs[1]) | phi_sites
            if vectorize_particles and not branching.is_met:
                break  # else particles may differ in their param sites
        phases.check_params(theta_sites, phi_sites)
        theta = trainable(param_values(theta_sites))
        phi = trainable({name: v for name, v in param_values(phi_sites).items() if name not in theta})
        sites.check_initial(theta | phi)
        if vectorize_particles and not branching.is_met:
            check_compiles(partial(objective.pilot, theta, phi), rng_key, args, kwargs, sites.latent_sites(runs[1]))
        return theta, phi

    known = resume.Known()

    def like_init(state: RWSState, args: tuple, kwargs: dict) -> RWSState:
        if vectorize_particles and not branching.is_met:
            return jax.eval_shape(init, jax.random.key(0), *args, **kwargs)
        met = initial(jax.random.key(0), args, kwargs)
        # There may be more, in branches that are not met.
        theta, phi = ({name: met.get(name, old[name]) for name in old} for met, old in zip(met, state[:2], strict=True))
        return RWSState(theta, phi, theta_optimizer.init(theta), phi_optimizer.init(phi), *state[4:])

    def stepping(updates: Updates, loop: Callable) -> Callable:
        # jax.jit mistakes an argument `state` of the programs for a positional-only one of the same name.
        def step(rws_state: RWSState, /, *args: Any, **kwargs: Any) -> tuple[RWSState, RWSInfo]:
            validation.check_state(rws_state, RWSState)
            known.check(rws_state, lambda: like_init(rws_state, args, kwargs))
            state = rws_state
            rng_key, step_key, *guide_key = jax.random.split(state.rng_key, 2 if phi_steps == 1 else 3)
            share = insomnia(state.step) if callable(insomnia) else insomnia
            options.check_scheduled_insomnia(share)
            share = jnp.asarray(share, float)
            # A schedule that leaves [0, 1] is told at run time only: as NaN it stops the update, and the info shows it.
            share = jnp.where((share >= 0.0) & (share <= 1.0), share, jnp.nan)

            def gradients(phi: Params, rng_key: jax.Array, trains_theta: bool) -> tuple:
                loss = partial(objective, trains_theta=trains_theta)
                return jax.grad(loss, has_aux=True)((state.theta, phi), share, rng_key, args, kwargs)

            def guide_step(carry: tuple, rng_key: jax.Array) -> tuple:
                old, finite = carry
                grads, (total, alive, _) = gradients(old[0], rng_key, trains_theta=False)
                return updates.of_guide(old, grads[1], share, total, alive, finite), None

            guide_state, finite = (state.phi, state.phi_opt_state), jnp.array(True)
            if phi_steps > 1:
                rng_keys = jax.random.split(guide_key[0], phi_steps - 1)
                (guide_state, finite), _ = loop(guide_step, (guide_state, finite), rng_keys)
            grads, (total, alive, told) = gradients(guide_state[0], step_key, trains_theta=True)
            return updates.of_both(state, rng_key, guide_state, grads, share, total, alive, finite, told)

        return step

    def getting_params(num_runs: int) -> Callable:
        def get_params(rws_state: RWSState, /, *args: Any, **kwargs: Any) -> Params:
            params, (theta, phi) = {}, rws_state[:2]
            for index in range(num_runs):
                for run in objective.pilot(theta, phi, jax.random.key(0), args, kwargs, index):
                    params |= constrained_values(run)
                if params.keys() >= theta.keys() | phi.keys():
                    break
            sites.check_all_met(theta.keys() | phi.keys(), params)
            return params

        return get_params

    updates = Updates.by(theta_optimizer, phi_optimizer, has_dreams=phases.sleep is not None)
    step, get_params = stepping(updates.compiled(), _python_loop), getting_params(_MAX_RUNS)
    if not vectorize_particles:
        step.jittable = False  # told to `fit`
        return RWS(init, step, get_params)
    at_once = [jax.jit(devices.automatic(f)) for f in (stepping(updates, lax.scan), getting_params(1))]
    return RWS(init, *(Dispatched(*both, branching) for both in zip(at_once, (step, get_params), strict=True)))


_MAX_RUNS = 1000  # of programs that take some parameters in some branches only


def _python_loop(body: Callable, carry: Any, xs: jax.Array) -> tuple:
    for x in xs:
        carry, _ = body(carry, x)
    return carry, None
