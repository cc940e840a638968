"""`simulation_gap`: how unlike real data are to what the model dreams, datum by datum, as the guide sees both."""

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from rws_jax.arguments import trained_programs_of
from rws_jax.checks.arguments import check_flag, check_rng_key
from rws_jax.checks.calibration import check_not_automatic, warn_of_blind
from rws_jax.checks.dreams import without_training
from rws_jax.core.errors import fail
from rws_jax.core.layers import Params, ProgramFn
from rws_jax.core.trees import is_traced
from rws_jax.estimators import weights
from rws_jax.estimators.wake import WakeParticle
from rws_jax.estimators.weights import PerParticle
from rws_jax.options import WeighedDreamOptions
from rws_jax.options.taking import takes
from rws_jax.posterior.dreams import p_values
from rws_jax.posterior.dreams.dreamt import branches, compare_with_dreams, guide_reads, log_weights
from rws_jax.posterior.dreams.gap import SimulationGap
from rws_jax.posterior.evidence_particle import EvidenceParticle
from rws_jax.posterior.running import run
from rws_jax.programs.program import Programs


class _Seen(NamedTuple):
    log_evidence: Any  # arrays of JAX, and of NumPy once on the host
    effective_sample_size: Any


@takes(WeighedDreamOptions)
def simulation_gap(
    options: WeighedDreamOptions,
    rng_key: jax.Array,
    params: Params,
    model: ProgramFn,
    guide: ProgramFn,
    /,
    *args: Any,
    num_simulations: int = 1000,
    exchangeable: bool = False,
    **kwargs: Any,
) -> SimulationGap:
    r"""Rank real data among dreams of the model, as the guide sees both: is the model wrong, before it is believed.

    For each unit, usually a datum, S data sets are dreamt with its own covariates. Log evidence and effective sample
    size of real and dreamt data are estimated alike, by K particles of the guide. The p-value of the real one is

    .. math:: p = \frac{1 + \#\{s : \hat t_s \le \hat t\}}{1 + S}

    which is uniform on the multiples of 1 / (1 + S) if the data come from the model (but for ties, which raise it), and
    guide and parameters were not trained on these very data: real and dreamt data are then exchangeable, and so are
    their estimates, for every guide and K. A poor guide costs power, not truth.

    A guide that was trained on these very data, by wake, raises the estimated evidence of them, not that of dreams, and
    so do the model's parameters: p-values are then too large, and small ones too rare. Data that training has not seen
    have exact ones. A guide that reads no data was fitted to one data set, if to any: automatic guides are refused, and
    others that read nothing are warned of. A guide with parameters for each datum, which reads data besides, is as
    little to be tested so, but cannot be told from others.

    Args:
      rng_key: JAX random key.
      params: constrained values of both programs, as ``rws.get_params`` gives them.
      model: NumPyro model, not seeded.
      guide: NumPyro guide, not seeded.
      *args: arguments of both programs, real data among them.
      num_simulations: S, dreams of each unit; p-values are no smaller than 1 / (1 + S).
      exchangeable: whether all units have one distribution under the model: no covariates, no sizes of their own. Each
        is then compared with the dreams of all, so that a few simulations are enough.
      options: how dreams are drawn, and particles for each of them; a chunk is of dreams with all of their particles.
      **kwargs: keyword arguments of both programs.

    Returns:
      A `SimulationGap`, which prints how many units are unlike to dreams, and which to look at first.

    Raises:
      ValueError: if the guide is automatic, programs or parameters do not match, the model cannot dream, or an option
        is out of range.
      TypeError: for an argument of the wrong kind.

    Example:
      >>> import jax, numpy as np, numpyro, numpyro.distributions as dist, rws_jax
      >>> def model(x):
      ...     with numpyro.plate("data", len(x)):
      ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
      ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x):
      ...     with numpyro.plate("data", len(x)):
      ...         numpyro.sample("z", dist.Normal(x / 2, 0.8))
      >>> gap = rws_jax.simulation_gap(jax.random.key(0), {}, model, guide, np.array([0.3, 8.0, -1.1], np.float32))
      >>> int(gap.order[0]), bool(gap.p_values[1] < 0.01)
      (1, True)

    References:
      Phipson and Smyth, Permutation P-values Should Never Be Zero, 2010. Schmitt et al., Detecting Model
      Misspecification in Amortized Bayesian Inference, 2023, arXiv 2112.08866.
    """
    options.check_number(num_simulations, "num_simulations", 1)
    check_flag(exchangeable, "exchangeable")
    check_rng_key(rng_key, "the first argument of simulation_gap", "pass jax.random.key(0), say")
    if is_traced((rng_key, params, args, kwargs)):
        what, hint = "simulation_gap is called inside of jit, scan or vmap", "call it from Python"
        fail(TypeError, what, expected="a call from Python", found="a traced argument", hint=hint)
    check_not_automatic(guide, "simulation_gap")
    programs_of = lambda key: trained_programs_of(simulation_gap, options, key, params, model, guide, args, kwargs)
    real_key, dream_key = jax.random.split(rng_key)
    dreaming, execution, dreamer = programs_of(dream_key), options.execution, options.dreamer
    with without_training("simulation_gap"):
        branching = branches(dreaming, dreamer, execution)
        reads = guide_reads(dreaming, dreamer, num_simulations, execution, branching=branching)
        if not reads:
            warn_of_blind(guide, "simulation_gap")
        real = _real(programs_of(real_key), options)
        dreamt = _dreamt(dreaming, num_simulations, options, branching)
    unranked = p_values.all_dead(dreamt.log_evidence)
    if exchangeable:
        _check_alike(dreamt.log_evidence[:, ~unranked])
    p_value = partial(p_values.lower_p_values, pooled=exchangeable, unranked=unranked)
    return SimulationGap(
        p_values=p_value(real.log_evidence, dreamt.log_evidence),
        ess_p_values=p_value(real.effective_sample_size, dreamt.effective_sample_size),
        log_evidence=real.log_evidence,
        effective_sample_size=real.effective_sample_size,
        dreamt_log_evidence=dreamt.log_evidence,
        dreamt_effective_sample_size=dreamt.effective_sample_size,
        max_ess=options.num,
        exchangeable=exchangeable,
        guide_reads=reads,
    )


def _real(programs: Programs, options: WeighedDreamOptions) -> _Seen:
    """Of the real data, in the memory that a chunk of dreams takes."""
    execution = options.execution.of_dreams(options.num, options.data.count(programs))
    return jax.device_get(_seen(run(EvidenceParticle(WakeParticle()), programs, options.num, execution)))


def _dreamt(programs: Programs, num_simulations: int, options: WeighedDreamOptions, branching: bool) -> _Seen:
    num_data = options.data.count(programs)
    num = num_simulations * (1 if num_data is None else num_data)
    dreamer, execution = options.dreamer, options.execution
    seen = compare_with_dreams(programs, dreamer, log_weights, _seen, num, options.num, execution, branching=branching)
    shape = (num_simulations,) if num_data is None else (num_simulations, num_data)
    return jax.tree.map(lambda leaf: np.reshape(leaf, (*shape, *leaf.shape[1:])), jax.device_get(seen))


@jax.jit
def _seen(log_w: PerParticle) -> _Seen:
    return _Seen(weights.bound(log_w), weights.summarise(log_w).effective_sample_size)


def _check_alike(dreamt_log_evidence: np.ndarray) -> None:
    """Units that the model dreams differently cannot be compared with the dreams of others; in columns."""
    num_units = dreamt_log_evidence.shape[1]
    p_value = p_values.p_value_of_equal_units(dreamt_log_evidence) if num_units else 1.0
    if p_value < 1e-6:
        warnings.warn(
            f"exchangeable=True, but dreams of different units differ in their log evidence (p = {p_value:.1g}):"
            " p-values are wrong. Leave the option out, so that each unit is compared with dreams of its own.",
            stacklevel=4,
        )
