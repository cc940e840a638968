"""Training: `make_step` turns a model and a guide into pure functions `init`, `step` and `get_params`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from numpyro.handlers import seed

from rws_jax import losses, matching, sites, validation, weights
from rws_jax.pilot import run_pilot
from rws_jax.programs import Params, Program, constrained_values, param_values, unconstrained
from rws_jax.state import RWS, RWSInfo, RWSState
from rws_jax.trees import all_finite, select, stays_finite, strong, trainable

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
    model_has_params: bool = True,
    simulated_data_to_args: Callable[..., tuple[tuple, dict]] | None = None,
    observed_sites: tuple[str, ...] = (),
) -> RWS:
    r"""Reweighted Wake-Sleep for a NumPyro model and guide, as pure functions.

    A step updates the model's parameters on `wake_theta_loss` and the guide's on

    .. math:: \iota \, L_\text{wake-phi} + (1 - \iota) \, L_\text{sleep-phi}, \qquad \iota = \text{insomnia}

    (Le et al. 2019). Both wake losses share one set of particles, and all gradients come from one pass; what the
    chosen insomnia does not need is not computed. `step` is jitted, and can be scanned, vmapped and jitted again.

    Args:
      model: NumPyro model; it need not be reparameterisable.
      guide: NumPyro guide, called with the same arguments.
      theta_optimizer: for the model's parameters; default ``optax.adam(1e-3)``.
      phi_optimizer: for the guide's parameters; default ``optax.adam(1e-3)``.
      num_particles: K, particles per unit in wake; at least 2 if a wake loss is computed.
      insomnia: share of wake-phi in the guide's loss, in [0, 1], or a schedule: a function of the step count.
      num_sleep_particles: dreams per step, each as large as the data; default `num_particles`.
      model_has_params: set to False to leave out wake-theta in pure sleep; a model with parameters is then an error.
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
    num_sleep_particles = num_particles if num_sleep_particles is None else num_sleep_particles
    validation.check_program(model, "model")
    validation.check_program(guide, "guide")
    validation.check_optimizer(theta_optimizer, "theta_optimizer")
    validation.check_optimizer(phi_optimizer, "phi_optimizer")
    validation.check_insomnia(insomnia)
    insomnia = insomnia if callable(insomnia) else float(insomnia)
    trains_on_wake = callable(insomnia) or insomnia > 0
    trains_on_sleep = callable(insomnia) or insomnia < 1
    validation.check_num_particles(num_particles, "num_particles", minimum=2 if trains_on_wake else 1)
    validation.check_num_particles(num_sleep_particles, "num_sleep_particles", minimum=1)
    validation.check_sleep_options(simulated_data_to_args, observed_sites)

    model, guide = unconstrained(model), unconstrained(guide)
    pilot = partial(
        run_pilot,
        model,
        guide,
        wake=trains_on_wake,
        sleep=trains_on_sleep,
        simulated_data_to_args=simulated_data_to_args,
        observed_sites=observed_sites,
    )

    def init(rng_key: jax.Array, *args: Any, **kwargs: Any) -> RWSState:
        validation.check_rng_key(rng_key)
        pilot_key, rng_key = jax.random.split(rng_key)
        model_run, guide_run = pilot(None, None, pilot_key, args, kwargs)
        theta, phi = trainable(param_values(model_run)), trainable(param_values(guide_run))
        sites.check_initial(theta | phi)
        matching.check_disjoint(theta, phi)
        matching.check_model_has_params(theta, model_has_params)
        if theta:
            validation.check_num_particles(num_particles, "num_particles", minimum=2)
        _check_compiles(partial(pilot, theta, phi, pilot_key), args, kwargs)
        step_count = jnp.zeros((), jnp.int32)
        if callable(insomnia):
            validation.check_scheduled_insomnia(insomnia(step_count))
        return RWSState(
            theta=theta,
            phi=phi,
            theta_opt_state=strong(theta_optimizer.init(theta)),
            phi_opt_state=strong(phi_optimizer.init(phi)),
            rng_key=rng_key,
            step=step_count,
        )

    def objective(params: tuple[Params, Params], share: jax.Array, rng_key: jax.Array, args: tuple, kwargs: dict):
        """The sum of the two programs' losses, whose gradients do not overlap, and what the info tells of it."""
        theta, phi = params
        rng_keys = jax.random.split(rng_key, 4)
        theta_loss, alive, told = jnp.zeros(()), jnp.array(True), {}
        if trains_on_wake or theta:
            programs = seed(model, rng_keys[0]), seed(guide, rng_keys[1])
            particles = losses.wake(theta, phi, *programs, args, kwargs, num_particles)
            told["wake_theta_loss"] = losses.theta_loss(particles)
            ess = weights.effective_sample_size(weights.log_weights(particles.log_p, particles.log_q))
            told |= {"ess_mean": jnp.mean(ess), "ess_min": jnp.min(ess), "num_dead_units": jnp.sum(ess == 0.0)}
            alive = jnp.any(ess != 0.0)
            theta_loss = jnp.where(alive, told["wake_theta_loss"], 0.0)  # else infinite, which is for the info to tell
        if trains_on_wake:
            told["wake_phi_loss"] = losses.phi_loss(particles)
        if trains_on_sleep:
            programs = seed(model, rng_keys[2]), seed(guide, rng_keys[3])
            routing = simulated_data_to_args, observed_sites
            dreams = losses.sleep(theta, phi, *programs, args, kwargs, num_sleep_particles, *routing)
            told["sleep_phi_loss"] = losses.dream_loss(dreams)
        told["phi_loss"] = _mix(share, told.get("wake_phi_loss"), told.get("sleep_phi_loss"))
        total = theta_loss + told["phi_loss"]
        return total, (total, alive, told)

    @jax.jit
    def step(state: RWSState, *args: Any, **kwargs: Any) -> tuple[RWSState, RWSInfo]:
        validation.check_state(state, RWSState)
        rng_key, step_key = jax.random.split(state.rng_key)
        share = insomnia(state.step) if callable(insomnia) else insomnia
        validation.check_scheduled_insomnia(share)
        share = jnp.asarray(share, float)
        # A schedule that leaves [0, 1] can be told at run time only: as NaN it stops the update, and the info shows it.
        share = jnp.where((share >= 0.0) & (share <= 1.0), share, jnp.nan)
        params = state.theta, state.phi
        grads, (total, alive, told) = jax.grad(objective, has_aux=True)(params, share, step_key, args, kwargs)
        new_theta = _update(theta_optimizer, grads[0], state.theta, state.theta_opt_state)
        new_phi = _update(phi_optimizer, grads[1], state.phi, state.phi_opt_state)

        # With every unit dead, wake has nothing to say: theta stays, and so does phi unless there are dreams.
        heard = alive | (share < 1.0) if trains_on_sleep else alive
        old = (state.theta, state.theta_opt_state), (state.phi, state.phi_opt_state)
        finite = heard & all_finite((total, grads)) & stays_finite((new_theta, new_phi), old)
        theta, theta_opt_state = select(finite & alive, new_theta, old[0])
        phi, phi_opt_state = select(finite, new_phi, old[1])
        # Key and count go on in any case: the next step draws anew, where the same draws would fail again.
        new_state = RWSState(theta, phi, theta_opt_state, phi_opt_state, rng_key=rng_key, step=state.step + 1)
        info = RWSInfo(
            wake_theta_loss=told.get("wake_theta_loss"),
            wake_phi_loss=told.get("wake_phi_loss"),
            sleep_phi_loss=told.get("sleep_phi_loss"),
            phi_loss=told["phi_loss"],
            insomnia=share,
            ess_mean=told.get("ess_mean"),
            ess_min=told.get("ess_min"),
            num_dead_units=told.get("num_dead_units"),
            theta_grad_norm=optax.tree.norm(grads[0]) if state.theta else None,
            phi_grad_norm=optax.tree.norm(grads[1]) if state.phi else None,
            finite=finite,
        )
        return new_state, info

    @jax.jit
    def get_params(state: RWSState, *args: Any, **kwargs: Any) -> Params:
        runs = pilot(state.theta, state.phi, jax.random.key(0), args, kwargs)  # what is drawn plays no part
        return constrained_values(runs[0]) | constrained_values(runs[1])

    return RWS(init, step, get_params)


def _mix(share: jax.Array, wake: jax.Array | None, sleep: jax.Array | None) -> jax.Array:
    """``share * wake + (1 - share) * sleep``; a term of share zero plays no part, were it infinite."""
    terms = [(share, wake), (1.0 - share, sleep)]
    parts = [jnp.where(s == 0.0, 0.0, s * loss) for s, loss in terms if loss is not None]
    return jnp.sum(jnp.stack(parts))


def _update(optimizer: optax.GradientTransformation, grads: Params, params: Params, opt_state: Any) -> tuple:
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _check_compiles(run: Callable, args: tuple, kwargs: dict) -> None:
    """Programs that need concrete values have run in `init`, and would fail in the compiled step only."""
    try:
        jax.eval_shape(lambda args, kwargs: (run(args, kwargs), None)[1], args, kwargs)
    except TypeError as error:  # JAX's errors on tracers are of this kind
        validation.fail_static(error)
