"""`describe`: what a model and a guide are to a training step, in words, before there is one."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.arguments import check_no_collision, check_passed_on
from rws_jax.checks.arguments import check_program
from rws_jax.core.errors import is_own
from rws_jax.core.layers import ProgramFn
from rws_jax.core.sites import data_sites, latent_sites
from rws_jax.core.text import Text
from rws_jax.execution.devices import on_automatic_axes
from rws_jax.options import ExecutionOptions, SleepOptions, StepOptions
from rws_jax.programs.density import Units
from rws_jax.programs.handlers import unconstrained
from rws_jax.programs.observations import SimulatedDataToArgs, describe_places, reads_no_data
from rws_jax.programs.program import Arguments, Index, Programs
from rws_jax.training.description import Dreams, Found, Weighing, description
from rws_jax.training.initial import initial_values
from rws_jax.training.pilot import PilotRuns, run_sleep
from rws_jax.training.step_loss import StepLoss


def describe(
    model: ProgramFn,
    guide: ProgramFn,
    /,
    *args: Any,
    vectorize_particles: bool = True,
    data_axes: Any = None,
    simulated_data_to_args: SimulatedDataToArgs | None = None,
    observed_sites: tuple[str, ...] = (),
    **kwargs: Any,
) -> Text:
    """Say in words what training will make of a model and a guide, before it begins.

    The text has the units, each of which has weights of its own; latents with shapes, distributions and supports; the
    data; the parameters; what sleep dreams and where the guide reads it, or why sleep is impossible; and, where there
    are any, minibatches, constants, masks, static arguments, state and branching sites. It ends with the warnings that
    `init` gives.

    Programs run un-jitted and with a fixed key, and are checked as in `init`. Nothing that they draw is shown.

    Args:
      model: NumPyro model, not seeded.
      guide: NumPyro guide, not seeded, called with the same arguments.
      *args: positional arguments of both, as for ``rws.init``.
      vectorize_particles: as in `make_step`.
      data_axes: as in `make_step`.
      simulated_data_to_args: as in `make_step`.
      observed_sites: as in `make_step`.
      **kwargs: keyword arguments of both.

    Returns:
      A string, which notebooks show as it is printed.

    Raises:
      ValueError: that of `init`, if programs and arguments fit together neither for wake nor for sleep.
      TypeError: for an argument of the wrong kind.

    Example:
      >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, rws_jax
      >>> def model(x):
      ...     rate = numpyro.param("rate", 1.0, constraint=dist.constraints.positive)
      ...     with numpyro.plate("data", len(x)):
      ...         z = numpyro.sample("z", dist.Exponential(rate))
      ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x):
      ...     with numpyro.plate("data", len(x)):
      ...         numpyro.sample("z", dist.LogNormal(numpyro.param("slope", 0.1) * x, 1.0))
      >>> rws_jax.describe(model, guide, jnp.array([0.3, 2.0]))
      model  model
      guide  guide
      units  2, the elements of plate 'data': each has weights of its own
      sleep  dreams x; the guide reads it from argument 'x'
      <BLANKLINE>
      latents  shape  plates  support              model        guide
        z      (2,)   data    real numbers from 0  Exponential  LogNormal
      <BLANKLINE>
      data  shape  plates  support       model
        x   (2,)   data    real numbers  Normal
      <BLANKLINE>
      parameters  shape  numbers  values               program
        rate      ()     1        real numbers from 0  model
        slope     ()     1        real numbers         guide
    """
    check_program(model, "model")
    check_program(guide, "guide")
    for program, role in ((model, "model"), (guide, "guide")):
        check_no_collision(describe, program, role, len(args))
    check_passed_on(describe, (model, guide), kwargs)
    execution = ExecutionOptions(vectorize_particles, data_axes=data_axes)
    options = SleepOptions(2, simulated_data_to_args, observed_sites)
    arguments = Arguments.of(args, kwargs, model)
    arguments = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, arguments)
    with on_automatic_axes(arguments) as placed:
        return Text(description(model, guide, placed, _found(_Trial(model, guide, execution, options, placed))))


@dataclass(frozen=True)
class _Trial:
    """Pilot runs of either phase."""

    model: ProgramFn
    guide: ProgramFn
    execution: ExecutionOptions
    options: SleepOptions
    arguments: Arguments

    def loss(self, *, wake: bool) -> StepLoss:
        """The loss of one phase."""
        options = StepOptions.of_phase(self.execution, self.options, wake=wake)
        return StepLoss(unconstrained(self.model), unconstrained(self.guide), options, self.execution.executor())

    def programs(self, loss: StepLoss) -> Programs:
        """The programs with their initial values."""
        rng_keys = tuple(jax.random.split(jax.random.key(0), 3))
        return loss.programs((None, None), rng_keys, self.arguments, None)

    def start(self, *, wake: bool) -> list[PilotRuns]:
        """The runs of `init`, with all of its checks."""
        return initial_values(self.loss(wake=wake), jax.random.key(0), self.arguments, set()).runs

    def wake(self) -> tuple[list[PilotRuns], Weighing]:
        """The same of wake, and what it gives weights to."""
        loss, runs = self.loss(wake=True), self.start(wake=True)
        programs = self.programs(loss)
        sites = [site for each in runs for site in latent_sites(each.guide).values()]
        alone = any(site["infer"].get("branching") for site in sites)
        if self.execution.one_by_one:
            alone = loss.executor.runs_alone(loss.options.wake.particle, programs)
        units = Units.of(runs[0].model, runs[0].guide)
        return runs, Weighing(units, loss.executor.data.count(programs), alone)

    def sleep(self) -> Dreams:
        """What sleep dreams, and where the guide reads it."""
        loss = self.loss(wake=False)
        executor, programs = loss.executor, self.programs(loss)
        datum = None if executor.data.count(programs) is None else 0
        programs = executor.data.take(programs, datum)
        with executor.watch():
            model_run = run_sleep(programs, Index(0, datum, executor.ragged), self.options, is_thorough=True).model
        data = {name: site["value"] for name, site in data_sites(model_run).items()}
        if self.options.simulated_data_to_args is not None:
            return Dreams({name: ["simulated_data_to_args"] for name in data})
        if reads_no_data(self.guide):
            return Dreams({name: [] for name in data})
        return Dreams(describe_places(self.guide, data, *programs.arguments.plain, model_run))


class _Attempt(NamedTuple):
    """What a phase has come to: a result or an error, and the warnings on the way."""

    result: Any
    error: Exception | None
    warnings: list[str]

    @classmethod
    def of(cls, run: Callable[[], Any]) -> "_Attempt":
        """Run a phase; if it is impossible, the other may do."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result, error = run(), None
            except Exception as raised:
                result, error = None, raised
        return cls(result, error, [str(warning.message) for warning in caught])


def _found(trial: _Trial) -> Found:
    wake, sleep = _Attempt.of(trial.wake), _Attempt.of(trial.sleep)
    if wake.error is None:
        start, (runs, weighing) = wake, wake.result
    else:  # where the model has parameters wake has to run in any case
        start = _Attempt.of(lambda: trial.start(wake=False))
        if start.error is not None or sleep.error is not None:
            raise (start.error or wake.error) if trial.options.observed_sites else wake.error
        runs, weighing = start.result, None
    if sleep.error is not None and not is_own(sleep.error):
        raise sleep.error
    errors = {name: a.error for name, a in (("wake", wake), ("sleep", sleep)) if a.error is not None}
    return Found(runs, weighing, sleep.result, errors, list(dict.fromkeys(start.warnings + sleep.warnings)))
