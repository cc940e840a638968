"""Pilot runs along different paths of programs that branch: a handful, chosen to meet what only some branches have.

A run draws its branching sites. Each other value that such a site could have had is then tried, with all before it as
it was, so that rare branches are met as soon as frequent ones. How many runs that takes depends on the programs, and
not on how many particles a step has.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpyro.distributions import Distribution

from rws_jax.core.layers import MutableState, Params
from rws_jax.core.site_functions import compiled_sites
from rws_jax.core.sites import param_sites
from rws_jax.execution.branching.handler import KnownValues, Latents
from rws_jax.execution.branching.trace import BranchingValue
from rws_jax.programs.density import log_density
from rws_jax.programs.program import Arguments
from rws_jax.training.pilot import PilotRuns, run_pilot
from rws_jax.training.step_loss import StepLoss

_MAX_RUNS = 16
_NUM_PLAIN = 3  # of particles as they are drawn, as Python may branch on more than discrete sites
_MAX_IN_VAIN = 4  # other runs in a row that meet nothing new, where it is not known which sites branch
_MIN_LOG_PROB = -13.8  # of values that are tried, one in a million; NumPyro takes a probability of zero for 1e-7
_MAX_VALUES = 5  # of a site, where it has more


def pilots(
    loss: StepLoss,
    params: tuple[Params | None, Params | None],
    rng_key: jax.Array,
    arguments: Arguments,
    mutable_state: MutableState | None = None,
    *,
    is_thorough: bool = True,
) -> Iterator[PilotRuns]:
    """Check one particle or, where programs branch, one on each of several paths.

    Args:
      loss: of which programs and phases.
      params: those of model and guide; None for initial values.
      rng_key: key of all runs.
      arguments: those of the programs.
      mutable_state: that of both programs; None for initial values.
      is_thorough: whether to make as well the checks that run programs several times more.

    Yields:
      The traces of each.
    """
    queue: deque[tuple[BranchingValue, ...]] = deque()
    seen: set[frozenset] = set()
    met: set[str] = set()
    num_in_vain = 0
    for run in range(_MAX_RUNS):
        is_plain = run < _NUM_PLAIN
        if not (is_plain or queue):
            return
        known = () if is_plain else queue.popleft()
        latents = Latents()
        with latents, KnownValues(known):
            of_run = params, jax.random.clone(rng_key), arguments, run if is_plain else 0, mutable_state
            runs = run_pilot(loss, *of_run, is_thorough=is_thorough)
        yield runs
        if not loss.executor.ragged:
            return
        names = {*latents.sites, *param_sites(runs.model), *param_sites(runs.guide)}
        num_in_vain, met = (0 if is_plain or names - met else num_in_vain + 1), met | names
        if not latents.branching and num_in_vain == _MAX_IN_VAIN:
            return
        for other in _others(latents):
            if frozenset(other) not in seen:
                seen.add(frozenset(other))
                queue.append(other)


def _others(latents: Latents) -> Iterator[tuple[BranchingValue, ...]]:
    """For each site that may branch, and each other value of it: what has been drawn up to there, and this value."""
    before: list[BranchingValue] = []
    for name, site in latents.sites.items():
        if not site["fn"].is_discrete or jnp.shape(site["value"]) != () or isinstance(site["value"], Tracer):
            continue
        if latents.branching and name not in latents.branching:
            continue
        drawn = BranchingValue.of(name, site["value"])
        for value in _values(site["fn"]):
            other = BranchingValue.of(name, np.asarray(value, drawn.dtype))
            if other != drawn and all(_may_draw(fn, other) for fn in latents.dists.get(name, [])):
                yield (*before, other)
        before.append(drawn)


def _may_draw(fn: Distribution, value: BranchingValue) -> bool:
    """Whether this value can occur: a program need not be prepared for one of probability zero."""
    with compiled_sites():
        return bool(np.all(log_density(fn, value.array, None) > _MIN_LOG_PROB))


def _values(fn: Distribution) -> Iterable:
    """The first values of a distribution."""
    try:
        return np.ravel(fn.enumerate_support(expand=False))[:_MAX_VALUES]
    except NotImplementedError:  # there is no end of them
        return np.arange(_MAX_VALUES)
