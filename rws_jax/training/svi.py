"""Reweighted Wake-Sleep as a loss of NumPyro's `SVI`: the same estimators, behind one scalar.

Knows NumPyro's `ELBO`. Keeps options, and what is compiled of programs that branch; parameters and keys come and go
with each call.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from numpyro.infer.elbo import ELBO

from rws_jax.checks.arguments import check_flag, check_params, check_rng_key
from rws_jax.checks.options import check_constant_insomnia, check_max_plate_nesting
from rws_jax.core.layers import Params, ProgramFn
from rws_jax.core.sites import trained_sites
from rws_jax.core.trees import chosen
from rws_jax.execution.data import Axes
from rws_jax.options import ExecutionOptions, StepOptions, StructureOptions
from rws_jax.programs.observations import SimulatedDataToArgs
from rws_jax.programs.program import Arguments
from rws_jax.training.state import RWSInfo
from rws_jax.training.step_loss import LossAux
from rws_jax.training.svi_programs import KnownPrograms


class ReweightedWakeSleep(ELBO):
    r"""Reweighted Wake-Sleep as a loss of `numpyro.infer.SVI`.

    .. math:: L = L_\text{wake-theta} + \iota \, L_\text{wake-phi} + (1 - \iota) \, L_\text{sleep-phi},
        \qquad \iota = \text{insomnia}

    (Bornschein and Bengio 2015; Le et al. 2019). Gradient: wake-theta's reaches the model's parameters alone, that of
    the two others the guide's alone, so one optimizer serves both, and `optax.multi_transform` makes it two.
    Bias: those of `wake_theta_loss` and `wake_phi_loss`. The value is a sum of two objectives, not a bound.

    From the same state an update of `SVI` is a step of `make_step`, and both start from one key alike where initial
    values are not random. Three things only `make_step` does: it follows a schedule of `insomnia`, makes several
    updates of the guide for one of the model, and leaves the state as it is if a step is not finite. For the last,
    use ``SVI.stable_update`` or ``SVI.run(..., stable_update=True)``.

    Programs and arguments are checked whenever the loss is traced or, un-jitted, called; those that branch in Python
    once for arguments of one kind. What shows in values only (data that are NaN or outside of a support, supports that
    move) is checked by `SVI.run` too; with a jitted ``SVI.update``, call ``svi.evaluate(state, *args)`` once before,
    un-jitted.

    Programs with branching sites take all of their parameters before they branch, as ``SVI.init`` sees one branch.

    Args:
      num_particles: K, particles per unit in wake; at least 2 if a wake loss is computed.
      insomnia: share of wake-phi in the guide's loss, a number in [0, 1].
      model_has_params: set to False to leave out wake-theta in pure sleep; a model with parameters is then an error.
      num_sleep_particles: dreams per step, each as large as the data; default `num_particles`.
      vectorize_particles: whether particles are mapped over. If False, each runs on its own and un-jitted: call
        ``SVI.update`` in a Python loop then, as ``SVI.run`` compiles, and where branching sites make many paths.
      max_plate_nesting: accepted as Pyro has it, and not needed: particles never take a dim of the programs.
      strict_enumeration_warning: whether to warn of sites annotated for enumeration. They are drawn like all others.
      control_variate: whether wake-phi's gradient has its control variate; see `wake_phi_loss`.
      defensive: share of particles, in [0, 1), that do not come from the guide; see `wake_phi_loss`.
      defensive_guide: NumPyro guide without parameters that they come from; default the model's prior.
      gradient: of wake-phi, ``"score"``, ``"dreg"`` or ``"vimco"``; see `wake_phi_loss`.
      num_local_particles: L, particles of latents in inner plates for each particle; see `wake_phi_loss`.
      local_numbers: whether these have ``"common"`` or ``"independent"`` random numbers.
      resample: ``"systematic"`` to resample particles along a scan; see `wake_phi_loss`.
      resample_below: share of the particles; resampling is for effective sample sizes below it.
      chunk_size: particles, and dreams, in memory at a time; None for all at once. Results do not depend on it.
      particle_sharding: how particles, and dreams, are spread over the devices of a mesh.
      data_axes: for programs written for one datum, where the arguments have the axis of data; see `wake_phi_loss`.
        ``SVI.init`` runs the programs as they are, so it gets one datum: ``state = svi.init(rng_key, x[0])``, then
        ``svi.update(state, x)`` or ``svi.run(rng_key, num_steps, x, init_state=state)``.
      data_chunk_size: with `data_axes`, data in memory at a time, each with all its particles; None for all at once.
        Results do not depend on it.
      shared_params: whether param sites may occur in both programs; both losses train them then.
      simulated_data_to_args: ``(data, *args, **kwargs) -> (args, kwargs)``, how the guide is shown dreamt data; see
        `sleep_phi_loss`.
      observed_sites: names of data sites of a model that runs without data, in pure sleep.

    Raises:
      ValueError: for an option out of range. From the loss, if model, guide and arguments do not fit together.
      TypeError: for an option of the wrong kind.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
      >>> from numpyro.infer import SVI
      >>> from rws_jax import ReweightedWakeSleep
      >>> def model(x):
      ...     p = numpyro.param("p", 0.5, constraint=dist.constraints.unit_interval)
      ...     with numpyro.plate("data", len(x)):
      ...         z = numpyro.sample("z", dist.Bernoulli(p))
      ...         numpyro.sample("x", dist.Normal(4.0 * z, 1.0), obs=x)
      >>> def guide(x):
      ...     a, b = numpyro.param("a", 0.0), numpyro.param("b", 0.0)
      ...     with numpyro.plate("data", len(x)):
      ...         numpyro.sample("z", dist.Bernoulli(logits=a * x + b))
      >>> svi = SVI(model, guide, optax.adam(0.05), loss=ReweightedWakeSleep(num_particles=10, insomnia=0.5))
      >>> result = svi.run(jax.random.key(0), 500, jnp.array([-1.0, 0.0, 1.0, 4.0]), progress_bar=False)
      >>> bool(jnp.abs(result.params["p"] - 0.25) < 0.05)
      True

    References:
      Bornschein and Bengio, Reweighted Wake-Sleep, 2015, arXiv 1406.2751.
      Le et al., Revisiting Reweighted Wake-Sleep, 2019, arXiv 1805.10469.
    """

    can_infer_discrete = True  # else SVI would warn of discrete latents

    def __init__(
        self,
        num_particles: int = 2,
        insomnia: float = 1.0,
        model_has_params: bool = True,
        num_sleep_particles: int | None = None,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        strict_enumeration_warning: bool = True,
        *,
        control_variate: bool = True,
        defensive: float = 0.0,
        defensive_guide: ProgramFn | None = None,
        gradient: str = "score",
        num_local_particles: int = 1,
        local_numbers: str = "common",
        resample: str | None = None,
        resample_below: float = 0.5,
        chunk_size: int | None = None,
        particle_sharding: NamedSharding | None = None,
        data_axes: Axes = None,
        data_chunk_size: int | None = None,
        shared_params: bool = False,
        simulated_data_to_args: SimulatedDataToArgs | None = None,
        observed_sites: tuple[str, ...] = (),
    ) -> None:
        check_constant_insomnia(insomnia)
        check_max_plate_nesting(max_plate_nesting)
        check_flag(strict_enumeration_warning, "strict_enumeration_warning")
        self._options = StepOptions(
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
        self._programs = KnownPrograms(self._options, strict_enumeration_warning)
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)

    def loss(
        self, rng_key: jax.Array, param_map: Params, model: ProgramFn, guide: ProgramFn, /, *args: Any, **kwargs: Any
    ) -> jax.Array:
        """The sum of both losses, to be differentiated with respect to `param_map`; what `SVI` minimises.

        Args:
          rng_key: JAX random key.
          param_map: `numpyro.param` site of either program -> constrained value.
          model: NumPyro model, not seeded.
          guide: NumPyro guide, not seeded.
          *args: arguments of both programs.
          **kwargs: keyword arguments of both programs.

        Returns:
          Scalar in nats, summed over the data. If no particle of any datum is within the support it is ``inf``, or the
          guide's loss alone if that has dreams to learn from.
        """
        return self._total(*self._evaluate(rng_key, param_map, model, guide, Arguments.of(args, kwargs, model)))

    def losses(
        self, rng_key: jax.Array, param_map: Params, model: ProgramFn, guide: ProgramFn, /, *args: Any, **kwargs: Any
    ) -> tuple[jax.Array | None, jax.Array]:
        """The pair ``(wake_theta_loss, phi_loss)``, each a scalar in nats.

        Arguments are those of `loss`. In pure sleep without parameters in the model, wake is not run: its loss is None.
        """
        _, aux = self._evaluate(rng_key, param_map, model, guide, Arguments.of(args, kwargs, model))
        return aux.metrics.get("wake_theta_loss"), aux.metrics["phi_loss"]

    def loss_and_grads(
        self, rng_key: jax.Array, param_map: Params, model: ProgramFn, guide: ProgramFn, /, *args: Any, **kwargs: Any
    ) -> tuple[tuple[jax.Array | None, jax.Array], Params]:
        """The pair of `losses`, and gradients as a tree like `param_map`.

        Each parameter has the gradient of its own program's loss, with respect to the constrained value.
        """

        def loss(param_map: Params) -> tuple[jax.Array, tuple]:
            total, aux = self._evaluate(rng_key, param_map, model, guide, Arguments.of(args, kwargs, model))
            return total, (aux.metrics.get("wake_theta_loss"), aux.metrics["phi_loss"])

        grads, losses = jax.grad(loss, has_aux=True)(param_map)
        return losses, grads

    def info(
        self, rng_key: jax.Array, param_map: Params, model: ProgramFn, guide: ProgramFn, /, *args: Any, **kwargs: Any
    ) -> RWSInfo:
        """What `make_step` reports of a step: losses, effective sample sizes, counts of dead particles and units.

        Arguments are those of `loss`, and the same key draws the same particles; ``svi.get_params(state)`` are the
        parameters. Gradients are not computed, so their norms are None; `finite` is whether the loss is.
        """
        total, aux = self._evaluate(rng_key, param_map, model, guide, Arguments.of(args, kwargs, model))
        rest = {"insomnia": jnp.asarray(self._options.insomnia, float), "finite": jnp.isfinite(self._total(total, aux))}
        info: dict[str, Any] = dict.fromkeys(RWSInfo._fields) | aux.metrics | rest
        return RWSInfo(**info)

    def loss_with_mutable_state(
        self, rng_key: jax.Array, param_map: Params, model: ProgramFn, guide: ProgramFn, /, *args: Any, **kwargs: Any
    ) -> Any:
        """What `SVI` calls if there are mutable sites, which `param_map` has as well.

        Returns the ``loss`` and the next ``mutable_state``, which is the old one if the loss is not finite.
        """
        total, aux = self._evaluate(rng_key, param_map, model, guide, Arguments.of(args, kwargs, model))
        loss, new = self._total(total, aux), aux.mutable_state or {}
        old = {name: param_map[name] for name in new}
        return {"loss": loss, "mutable_state": chosen(jnp.isfinite(loss), new, old)}

    def _total(self, total: jax.Array, aux: LossAux) -> jax.Array:
        return total if self._options.sleep else total + jnp.where(aux.alive, 0.0, jnp.inf)

    def _evaluate(
        self, rng_key: jax.Array, params: Params, model: ProgramFn, guide: ProgramFn, arguments: Arguments
    ) -> tuple[jax.Array, LossAux]:
        check_rng_key(
            rng_key, "the first argument of the loss", "pass (jax.random.key(0), params, model, guide, *args)"
        )
        check_params(params, "param_map")
        options, programs = self._options, self._programs.of(model, guide)
        loss, theta, phi = programs.loss, programs.model.param_sites, programs.guide.param_sites
        if not loss.executor.ragged:
            programs.forget_params()  # those of programs that branch are of all branches that have been taken
        mutable = programs.check(rng_key, params, arguments)
        params = {name: value for name, value in params.items() if name not in mutable}
        programs.check_params()
        trains_theta = bool(trained_sites(theta))
        if options.model_has_params and not options.execution.vectorize_particles:
            # Another particle may take another branch: what this one's guide has not taken may be the model's.
            trains_theta = trains_theta or params.keys() > phi.keys()
        insomnia = jnp.asarray(options.insomnia, float)
        result = loss((params, params), insomnia, rng_key, arguments, mutable or None, trains_theta=trains_theta)
        programs.check_params()  # again, as branches may have come up with more
        return result
