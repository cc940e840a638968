"""`simulation_gap`: how unlike real data are to what the model dreams, datum by datum, as the guide sees both."""

import warnings
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from rws_jax.arguments import trained_programs_of
from rws_jax.checks.arguments import check_flag, check_int, check_rng_key
from rws_jax.core.errors import fail
from rws_jax.core.layers import Params, ProgramFn
from rws_jax.core.trees import is_traced
from rws_jax.estimators import weights
from rws_jax.estimators.wake import WakeParticle
from rws_jax.estimators.weights import PerParticle
from rws_jax.execution.data import Data
from rws_jax.options import ExecutionOptions, SleepOptions
from rws_jax.options.sampling import RunOptions, takes
from rws_jax.posterior import p_values
from rws_jax.posterior.dreamt import compare_with_dreams, log_weights
from rws_jax.posterior.evidence_particle import EvidenceParticle
from rws_jax.posterior.gap import SimulationGap
from rws_jax.posterior.running import run
from rws_jax.programs.observations import SimulatedDataToArgs
from rws_jax.programs.program import Programs


class _Seen(NamedTuple):
    log_evidence: Any  # arrays of JAX, and of NumPy once on the host
    effective_sample_size: Any


@takes(RunOptions)
def simulation_gap(
    options: RunOptions,
    rng_key: jax.Array,
    params: Params,
    model: ProgramFn,
    guide: ProgramFn,
    /,
    *args: Any,
    num_simulations: int = 1000,
    num_particles: int = 100,
    exchangeable: bool = False,
    simulated_data_to_args: SimulatedDataToArgs | None = None,
    **kwargs: Any,
) -> SimulationGap:
    r"""Rank real data among dreams of the model, as the guide sees both: is the model wrong, before it is believed.

    For each unit, usually a datum, S data sets are dreamt with its own covariates. Log evidence and effective sample
    size of real and dreamt data are estimated alike, by K particles of the guide. The p-value of the real one is

    .. math:: p = \frac{1 + \#\{s : \hat t_s \le \hat t\}}{1 + S}

    which is uniform on the multiples of 1 / (1 + S) if the data come from the model (but for ties, which raise it),
    whatever guide and K: real and dreamt data are then exchangeable, and so are their estimates. A poor guide costs
    power, not truth. Parameters that were trained on the same data make p-values somewhat too large.

    Args:
      rng_key: JAX random key.
      params: constrained values of both programs, as ``rws.get_params`` gives them.
      model: NumPyro model, not seeded.
      guide: NumPyro guide, not seeded.
      *args: arguments of both programs, real data among them.
      num_simulations: S, dreams of each unit; p-values are no smaller than 1 / (1 + S).
      num_particles: K, draws of the guide for real and dreamt data.
      exchangeable: whether all units have one distribution under the model: no covariates, no sizes of their own. Each
        is then compared with the dreams of all, so that a few simulations are enough.
      simulated_data_to_args: what the guide is to see of dreams, as in `sleep_phi_loss`.
      options: how they run; `chunk_size` counts dreams, each with all of its particles.
      **kwargs: keyword arguments of both programs.

    Returns:
      A `SimulationGap`, which prints how many units are unlike to dreams, and which to look at first.

    Raises:
      ValueError: if programs or parameters do not match, the model cannot dream, or an option is out of range.
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
    hint = "pass num_particles=100, say; p-values are right for any number"
    check_int(num_particles, "num_particles", 1, expected="an int >= 1", hint=hint)
    check_flag(exchangeable, "exchangeable")
    check_rng_key(rng_key, "the first argument of simulation_gap", "pass jax.random.key(0), say")
    if is_traced((rng_key, params, args, kwargs)):
        what, hint = "simulation_gap is called inside of jit, scan or vmap", "call it from Python"
        fail(TypeError, what, expected="a call from Python", found="a traced argument", hint=hint)
    programs_of = lambda key: trained_programs_of(
        simulation_gap, key, params, model, guide, args, kwargs, mutable_state=options.mutable_state
    )
    real_key, dream_key = jax.random.split(rng_key)
    real = _real(programs_of(real_key), num_particles, options.execution)
    sleep = SleepOptions(num_simulations, simulated_data_to_args)
    dreamt = _dreamt(programs_of(dream_key), sleep, num_particles, options.execution)
    if exchangeable:
        _check_alike(dreamt.log_evidence)
    p_value = partial(p_values.lower_p_values, pooled=exchangeable)
    return SimulationGap(
        p_values=p_value(real.log_evidence, dreamt.log_evidence),
        ess_p_values=p_value(real.effective_sample_size, dreamt.effective_sample_size),
        log_evidence=real.log_evidence,
        effective_sample_size=real.effective_sample_size,
        dreamt_log_evidence=dreamt.log_evidence,
        dreamt_effective_sample_size=dreamt.effective_sample_size,
        num_particles=num_particles,
        exchangeable=exchangeable,
    )


def _real(programs: Programs, num_particles: int, execution: ExecutionOptions) -> _Seen:
    """Of the real data, in the memory that a chunk of dreams takes."""
    num_data, chunk_size = Data(execution.data_axes).count(programs), execution.chunk_size
    if chunk_size is not None and num_data is not None:
        chunk_size = max(1, chunk_size * num_particles // num_data)
    execution = replace(execution, chunk_size=chunk_size and min(chunk_size, num_particles), particle_sharding=None)
    return jax.device_get(_seen(run(EvidenceParticle(WakeParticle()), programs, num_particles, execution)))


def _dreamt(programs: Programs, sleep: SleepOptions, num_particles: int, execution: ExecutionOptions) -> _Seen:
    num_data = Data(execution.data_axes).count(programs)
    num = sleep.num_dreams * (1 if num_data is None else num_data)
    seen = compare_with_dreams(programs, sleep.estimator.particle, log_weights, _seen, num, num_particles, execution)
    shape = (sleep.num_dreams,) if num_data is None else (sleep.num_dreams, num_data)
    return jax.tree.map(lambda leaf: np.reshape(leaf, (*shape, *leaf.shape[1:])), jax.device_get(seen))


@jax.jit
def _seen(log_w: PerParticle) -> _Seen:
    return _Seen(weights.bound(log_w), weights.summarise(log_w).effective_sample_size)


def _check_alike(dreamt_log_evidence: np.ndarray) -> None:
    """Units that the model dreams differently cannot be compared with the dreams of others."""
    p_value = p_values.p_value_of_equal_units(dreamt_log_evidence.reshape(len(dreamt_log_evidence), -1))
    if p_value < 1e-6:
        warnings.warn(
            f"exchangeable=True, but dreams of different units differ in their log evidence (p = {p_value:.1g}):"
            " p-values are wrong. Leave the option out, so that each unit is compared with dreams of its own.",
            stacklevel=3,
        )
