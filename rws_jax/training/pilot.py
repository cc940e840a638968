"""One particle of each phase, run once and un-jitted: how `init` meets the programs, and where a mismatch shows.

The estimators' own particles are run; only what is checked of the traces, and of values that are known, is said here.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from rws_jax.checks import sites
from rws_jax.checks.dreams import warn_of_prior
from rws_jax.checks.supports import check_fixed, warn_of_narrower
from rws_jax.checks.units import warn_of_one_unit
from rws_jax.core.layers import MutableState, Params
from rws_jax.core.sites import Trace, latent_sites, param_sites, trained_sites
from rws_jax.core.supports import bounds, count_outside
from rws_jax.core.trees import is_known, is_traced, trainable
from rws_jax.estimators.wake import WakeRuns
from rws_jax.execution.vectorized import Vectorized
from rws_jax.options import SleepOptions, WakeOptions
from rws_jax.programs.density import Units
from rws_jax.programs.independence import check_independent
from rws_jax.programs.leaks import check_no_real_data, reads_data
from rws_jax.programs.levels import Levels
from rws_jax.programs.program import Arguments, Index, Program, Programs
from rws_jax.programs.run import Draws, mutable_start, param_values, replay, sample
from rws_jax.training.step_loss import StepLoss


class PilotRuns(NamedTuple):
    """Traces of model and guide, of the last phase that was run."""

    model: Trace
    guide: Trace


def run_pilot(
    loss: StepLoss,
    params: tuple[Params | None, Params | None],
    rng_key: jax.Array,
    arguments: Arguments,
    number: int = 0,
    mutable_state: MutableState | None = None,
    *,
    is_thorough: bool = True,
) -> PilotRuns:
    """Run one particle, of the first datum, as the chosen phases do, and check that the programs fit together.

    Args:
      loss: of which programs and phases. Wake is run as well if the model has parameters.
      params: those of model and guide; None for initial values.
      rng_key: key of this run.
      arguments: those of the programs.
      number: which particle.
      mutable_state: that of both programs; None for initial values.
      is_thorough: whether to make as well the checks that run programs several times more.
    """
    options, executor = loss.options, loss.executor
    programs = loss.programs(params, tuple(jax.random.split(rng_key, 3)), arguments, mutable_state)
    datum = None if executor.data.count(programs) is None else 0
    programs = executor.data.take(programs, datum)
    runs, needs_wake = None, options.trains_phi_on_wake
    with executor.watch():
        if options.sleep:
            runs = run_sleep(programs, Index(number, datum, executor.ragged), options.sleep, is_thorough=is_thorough)
            needs_wake = needs_wake or bool(trained_sites(param_sites(runs.model)))
        if runs is None or needs_wake:
            index = lambda: Index(number, datum, executor.ragged)  # programs may turn out to branch
            moves = options.trains_phi_on_wake and options.wake.needs_fixed_support and is_thorough
            runs = _run_wake(programs, index, options.wake, check_moves=moves)
    return runs


def run_sleep(programs: Programs, index: Index, options: SleepOptions, *, is_thorough: bool) -> PilotRuns:
    """Dream once, and show the dream to the guide."""
    particle = options.estimator.particle
    model_run, dream = particle.dream(programs, index)
    guide_run, _ = particle.run(programs, index, dream, model_run)
    if is_thorough:
        check_no_real_data(particle, programs, index, by_values=True)
        if not reads_data(particle, programs, index, model_run, dream):
            warn_of_prior(programs.guide.fn)
    return PilotRuns(model_run, guide_run)


def _run_wake(programs: Programs, index: Callable[[], Index], options: WakeOptions, *, check_moves: bool) -> PilotRuns:
    particle = options.particle
    of_guide = replace(particle, delta=0.0)
    draws = of_guide.draw(programs, index())
    runs = of_guide.run(programs, index(), draws)
    of_guide.units_of(runs)
    if check_moves:
        _check_fixed_support(programs, index(), runs.guide)
    if options.structure.name is not None:  # its own checks are made as it is traced
        whole, known = options.estimator.particle, _with_initial_values(programs, runs)
        jax.eval_shape(lambda: whole(known, index()) if index().alone else Vectorized()(whole, known, 2))
    sites.warn_of_auxiliary(runs.guide, runs.model)
    if index().datum is None:
        warn_of_one_unit(runs.model, runs.guide)
    for name, site in latent_sites(runs.model).items():
        warn_of_narrower(name, runs.guide[name]["fn"], site["fn"])
    _check_data(runs.model)
    if particle.delta:
        if index().alone:
            particle.run(programs, index(), draws)  # the guide's draws, too, as one of the two draws a particle
        particle(programs, index())
    return PilotRuns(runs.model, runs.guide)


def _with_initial_values(programs: Programs, runs: WakeRuns) -> Programs:
    """Programs whose parameters and state are those of a run, as values that all particles share."""

    def with_values(program: Program) -> Program:
        run = runs.model if program.role == "model" else runs.guide
        start = mutable_start(run) if program.mutable_state is None else program.mutable_state
        return replace(program, params=param_values(run), mutable_state=start)

    return replace(programs, model=with_values(programs.model), own_guide=with_values(programs.own_guide))


def check_elements(
    pilot_runs: PilotRuns,
    loss: StepLoss,
    params: tuple[Params | None, Params | None],
    rng_key: jax.Array,
    arguments: Arguments,
    mutable_state: MutableState | None,
) -> None:
    """Check that elements of plates do not depend on one another, where wake runs and gives each of them a weight."""
    options, executor = loss.options, loss.executor
    units = Units.of(*pilot_runs)
    of_elements: list[tuple[Units, frozenset[str] | None]] = [(units, None)]
    if options.wake.structure.num_local_particles > 1:
        levels = Levels.of(units, *pilot_runs)
        of_elements += [(level.units, levels.sites_within(level)) for level in levels.all[1:]]
    of_elements = [pair for pair in of_elements if math.prod(pair[0].shape) > 1]
    if not of_elements:
        return  # there is nothing beside an element
    rng_keys = jax.random.split(jax.random.clone(rng_key), 3)
    programs = loss.programs(params, tuple(rng_keys), arguments, mutable_state)
    if not is_known(programs):
        return
    particle = replace(options.wake.particle, delta=0.0)
    datum = None if executor.data.count(programs) is None else 0
    index = Index(0, datum, executor.runs_alone(particle, programs))
    if index.alone:
        return  # all is one unit
    programs = executor.data.take(programs, datum)
    draw = lambda number: sample(programs.guide, programs.arguments, index._replace(particle=number))
    run_at = lambda draws: particle.run(programs, index, draws)[:2]
    for elements, names in of_elements:
        check_independent(elements, (pilot_runs.model, pilot_runs.guide), draw, run_at, names)


def _check_fixed_support(programs: Programs, index: Index, run: Trace) -> None:
    """Scores have expectation zero, and draws a density to follow, where the support does not move with parameters."""
    phi, draws = trainable(param_values(run)), Draws.of(run)

    def edges(phi: Params) -> dict[str, tuple]:
        guide = replace(programs.guide, params=phi, mutable_state=mutable_start(run))
        again = replay(guide, programs.arguments, index, draws)
        return {name: bounds(site["fn"]) for name, site in latent_sites(again).items()}

    def moves_of(phi: Params) -> dict[str, tuple]:
        direction = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) + 1.1, phi)
        return jax.jvp(edges, (phi,), (direction,))[1]

    try:  # compiled, of the programs only what the bounds depend on is left
        tangents = (moves_of if index.alone else jax.jit(moves_of))(phi)
    except TypeError:  # programs that cannot be traced are refused later on, by `check_compiles`, which says why
        tangents = moves_of(phi)
    for name, moves in tangents.items():
        if not is_traced(moves):
            check_fixed(name, moves)


def _check_data(model_run: Trace) -> None:
    for name, site in model_run.items():
        if site["type"] == "sample" and site["is_observed"]:
            num_outside = count_outside(site["fn"], site["value"])
            sites.check_data(name, 0 if isinstance(num_outside, Tracer) else int(num_outside))
