"""Where training starts: pilot runs check that programs, options and arguments fit, and find initial values."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from rws_jax.checks.params import check_held, check_initial, check_none_held
from rws_jax.core.layers import MutableState, Params
from rws_jax.core.sites import Trace, held_sites, param_sites
from rws_jax.core.trees import is_known, trainable
from rws_jax.execution.compiles import check_compiles
from rws_jax.programs.program import Arguments
from rws_jax.programs.run import param_values
from rws_jax.training.exploration import pilots
from rws_jax.training.mutable_state import MutableSites
from rws_jax.training.pilot import PilotRuns, check_elements, run_pilot
from rws_jax.training.step_loss import StepLoss


class Initial(NamedTuple):
    """What the pilot runs have found."""

    theta: Params  # unconstrained
    phi: Params
    mutable_state: MutableState | None
    runs: list[PilotRuns]  # one, or one for each path that was tried


def initial_values(loss: StepLoss, rng_key: jax.Array, arguments: Arguments, compared: set[tuple]) -> Initial:
    """Run the programs as a step would, check that they fit together, and take what they start from.

    Args:
      loss: of which programs and phases.
      rng_key: key of these runs.
      arguments: those of the programs.
      compared: kinds of arguments for which elements of plates have been compared, which is done once for each.
    """
    options, executor = loss.options, loss.executor
    theta_sites, phi_sites, held, mutable, all_runs = _pilots(loss, None, rng_key, arguments)
    check_held(theta_sites, held)
    theta = trainable(param_values(theta_sites))
    if _starts_elsewhere(held, theta):
        _, phi_sites, _, mutable, all_runs = _pilots(loss, theta, rng_key, arguments)
    options.check_params(theta_sites, phi_sites)
    phi = trainable({name: value for name, value in param_values(phi_sites).items() if name not in theta})
    check_initial(theta | phi)
    if not executor.ragged:
        pilot = partial(run_pilot, loss, (theta, phi), mutable_state=mutable.state, is_thorough=False)
        check_compiles(pilot, rng_key, arguments, loss.model)
    mutable_state = mutable.check(loss, (theta, phi), rng_key, arguments)
    kind = jax.tree.structure(arguments), *map(jax.typeof, jax.tree.leaves(arguments))
    if all_runs and (options.trains_phi_on_wake or theta) and kind not in compared:
        check_elements(all_runs[0], loss, (theta, phi), rng_key, arguments, mutable_state)
        if is_known((rng_key, arguments)):
            compared.add(kind)
    return Initial(theta, phi, mutable_state or None, all_runs)


class _Pilots(NamedTuple):
    """What programs that start from their initial values have come to."""

    theta_sites: Trace
    phi_sites: Trace
    held: Trace  # which the guide reads and the model owns
    mutable: MutableSites
    runs: list[PilotRuns]


def _pilots(loss: StepLoss, theta: Params | None, rng_key: jax.Array, arguments: Arguments) -> _Pilots:
    theta_sites, phi_sites, held, mutable, all_runs = Trace(), Trace(), Trace(), MutableSites(), []
    for runs in pilots(loss, (theta, None), rng_key, arguments):  # particles may differ in their param sites
        all_runs.append(runs)
        check_none_held(held_sites(runs.model))
        theta_sites, phi_sites = param_sites(runs.model) | theta_sites, param_sites(runs.guide) | phi_sites
        held = held_sites(runs.guide) | held
        mutable.add(runs)
    return _Pilots(theta_sites, phi_sites, held, mutable, all_runs)


def _starts_elsewhere(held: Trace, theta: Params) -> bool:
    """Whether the guide had other values of what it holds than the model starts from, as these were drawn at random."""
    shared = held.keys() & theta.keys()
    own, others = {name: held[name]["value"] for name in shared}, {name: theta[name] for name in shared}
    if not is_known((own, others)) or jax.tree.structure(own) != jax.tree.structure(others):
        return False
    return not jax.tree.all(jax.tree.map(np.array_equal, own, others))
