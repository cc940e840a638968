r"""Simulation-based calibration: whether a guide's draws are as uncertain as they claim, tested on dreams of the model.

The latents of a dream are a draw from the posterior of its data, so their rank among draws from that posterior is
uniform. An amortised guide needs no fit for each dream.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from rws_jax.arguments import trained_programs_of
from rws_jax.checks.arguments import check_flag, check_int
from rws_jax.checks.calibration import check_known, check_levels, check_not_automatic, warn_of_blind
from rws_jax.checks.dreams import without_training
from rws_jax.checks.pairs import fail_branching_pairs
from rws_jax.core.errors import fail
from rws_jax.core.layers import Params, ProgramFn
from rws_jax.estimators.sleep import DreamParticle
from rws_jax.options import DreamOptions, ExecutionOptions
from rws_jax.options.taking import takes
from rws_jax.posterior.dreams.calibrated import Calibration
from rws_jax.posterior.dreams.dreamt import branches, compare_with_dreams, guide_reads, shapes_of_dreams
from rws_jax.posterior.dreams.pairs import GivenPairs, Pairs, ProgramsWithPairs
from rws_jax.posterior.dreams.ranking import Quantities, RankStatistic, RankSummary, ranks_of
from rws_jax.programs.program import Programs

_NUM_TRIED = 200  # dreams that tell which sites there are, where Python branches
_TIES = 0xFFFFFFFE  # a number for the key of ties that no program's key has


@takes(DreamOptions)
def simulation_based_calibration(
    options: DreamOptions,
    rng_key: jax.Array,
    params: Params,
    model: ProgramFn,
    guide: ProgramFn,
    /,
    *args: Any,
    num_simulations: int | None = None,
    num_samples: int = 99,
    weighted: bool = False,
    pairs: Pairs | None = None,
    levels: Iterable[float] = (0.5, 0.8, 0.95),
    **kwargs: Any,
) -> Calibration:
    r"""Test on dreams of the model whether the guide draws from the posterior; it needs no fit for each dream.

    .. math:: (z^*, x^*) \sim p(z, x), \quad z_1, \dots, z_L \sim q(z \mid x^*), \quad
        \text{rank} = \#\{l : f(z_l, x^*) < f(z^*, x^*)\}

    If the guide is the posterior, ranks are uniform on 0 to L, for every f (Talts et al. 2018). Here f is each scalar
    of each latent and, for all latents of a unit together, log q(z | x) and log p(z, x). The rank of log q tells
    whether the guide's regions of highest density cover what they claim (Hermans et al. 2022). That of log p is needed
    for guides that do not read some of the data: with a guide that is the prior all other ranks are uniform (Modrák et
    al. 2023). Ties, of discrete latents say, are broken at random. p-values are exact (Säilynoja et al. 2022).

    Weighted, the posterior is that of self-normalised importance sampling: each draw weighs p(z, x*) / q(z | x*), with
    a weight for each unit. The weight of draws below takes the place of their number, and ranks are uniform as L grows.
    A guide that is off, but covers the posterior, passes once L is large enough.

    A simulation has no ranks if the dream, a draw or a log density of theirs is NaN: it is left out, and a warning
    counts these. Ranks of the others stay uniform, as the dream is left out for the same reasons as a draw.

    The model dreams as in `sleep_phi_loss`: with its real arguments, which give shapes and covariates. Where Python
    branches, a site that a dream or a draw lacks counts as minus infinity there, so whether it exists is tested too;
    sites are those of the first 200 dreams. With `data_axes`, dream s has the arguments of datum s modulo their number,
    and is a unit of its own.

    The guide has to read its data. One that does not was fitted to one data set, if to any, and dreams are others:
    automatic guides are refused, and others that read nothing are warned of. A guide with parameters for each datum,
    which reads data besides, is as little to be tested so, but cannot be told from others.

    Args:
      rng_key: JAX random key.
      params: constrained values of both programs, as `get_params` gives them.
      model: NumPyro model, not seeded.
      guide: NumPyro guide, not seeded.
      *args: arguments of both programs.
      num_simulations: dreams, each as large as the data; None for 1,000, or for as many as there are `pairs`.
      num_samples: L, draws of the guide for each dream.
      weighted: whether draws are weighted by the model; pass more of them, ``num_samples=999``, say.
      pairs: latents and data in place of dreams, a dict of arrays by site with an axis of pairs in front, as NumPyro's
        `Predictive` returns it; or two dicts, of latents and of data.
      levels: probabilities of the intervals and regions whose coverage is reported.
      options: how dreams are drawn and run; a chunk is of dreams with all of their draws.
      **kwargs: keyword arguments of both programs.

    Returns:
      `Calibration`: ``ranks``, ``p_values`` and ``coverage`` by site, the same of log densities, and ``p_value`` for
      all of it together; printed, it says in words what is wrong.

    Raises:
      ValueError: if the guide is automatic, programs, parameters or pairs do not match, dreams cannot be drawn or
        shown, real data come into them, an option is out of range, the call is traced, or no simulation can be ranked.
      TypeError: if an option is of the wrong type.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, rws_jax
      >>> def model(x):
      ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
      ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x):
      ...     numpyro.sample("z", dist.Normal(x / 2, numpyro.param("scale", 1.0)))
      >>> def p_value(scale):  # of the posterior it is the square root of 1/2
      ...     params = {"scale": jnp.array(scale)}
      ...     return rws_jax.simulation_based_calibration(jax.random.key(0), params, model, guide, 0.0).p_value
      >>> p_value(0.5**0.5) > 0.01, p_value(0.5) > 0.01
      (True, False)

    References:
      Talts et al., Validating Bayesian inference algorithms with simulation-based calibration, 2018, arXiv 1804.06788.
      Säilynoja, Bürkner and Vehtari, Graphical test for discrete uniformity, 2022, arXiv 2103.10522.
      Hermans et al., A trust crisis in simulation-based inference?, 2022, arXiv 2110.06581.
      Modrák et al., Simulation-based calibration checking: the choice of test quantities, 2023, arXiv 2211.02383.
    """
    _check_number(num_samples, "num_samples", 99)
    check_flag(weighted, "weighted")
    levels = check_levels(levels)
    programs = trained_programs_of(simulation_based_calibration, options, rng_key, params, model, guide, args, kwargs)
    check_known(programs)
    check_not_automatic(guide, "simulation_based_calibration")
    execution, dreamer = options.execution, options.dreamer
    if pairs is not None:
        programs = ProgramsWithPairs.of(programs, pairs)
        dreamer = GivenPairs(dreamer.data_sites, dreamer.rewrite)
        num_simulations = programs.check_num(num_simulations)
    num_simulations = 1000 if num_simulations is None else num_simulations
    _check_number(num_simulations, "num_simulations", 1000)
    execution.check_number(num_simulations, "num_simulations", 1)  # that it divides over devices
    with without_training("simulation_based_calibration"):
        branching = branches(programs, dreamer, execution)
        reads = guide_reads(programs, dreamer, num_simulations, execution, branching=branching)
        if not reads:
            warn_of_blind(guide, "simulation_based_calibration")
        compared, left_out = _compare(programs, dreamer, num_simulations, num_samples, weighted, execution, branching)
    compared = _ranked(compared)
    rng_key = jax.random.fold_in(jax.random.clone(rng_key), _TIES)
    ties = iter(jax.random.split(rng_key, len(compared.sites) + len(compared.densities)))
    ranks_by_name = lambda part: {name: ranks_of(next(ties), *part[name], num_samples=num_samples) for name in part}
    ranks, density_ranks = ranks_by_name(compared.sites), ranks_by_name(compared.densities)
    about = {"weighted": bool(weighted), "left_out": left_out, "guide_reads": reads}
    return Calibration.of(ranks, density_ranks, levels, num_samples, **about)


def _compare(
    programs: Programs,
    dreamer: DreamParticle,
    num_simulations: int,
    num_samples: int,
    weighted: bool,
    execution: ExecutionOptions,
    branching: bool,
) -> tuple[Quantities, tuple[str, ...]]:
    """For each scalar, how many draws lie below each dream and how many equal it; and the sites that are left out."""
    shapes: dict[str, tuple[int, ...] | None] = {}
    if branching:
        if isinstance(dreamer, GivenPairs) and not execution.one_by_one:
            fail_branching_pairs()
        shapes = shapes_of_dreams(programs, dreamer, execution, min(num_simulations, _NUM_TRIED))
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    compared = compare_with_dreams(
        programs,
        dreamer,
        RankStatistic(tuple(known.items())),
        RankSummary(bool(weighted)),
        num_simulations,
        num_samples,
        execution,
        branching=branching,
    )
    of_sites = {
        name: _side_by_side(numbers, known[name]) if isinstance(numbers, list) else numbers
        for name, numbers in compared.sites.items()
    }
    return Quantities(of_sites, compared.densities), tuple(shapes.keys() - known.keys())


def _ranked(compared: Quantities) -> Quantities:
    """Without the simulations in which something is not a number, and so has no rank."""
    rows = lambda numbers: np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    by_name = {name: rows(below) & rows(tied) for name, (below, tied) in (compared.sites | compared.densities).items()}
    ranked = np.all(list(by_name.values()), axis=0)
    if ranked.all():
        return compared
    names = ", ".join(f"'{name}'" for name, has_rank in by_name.items() if not has_rank.all())
    hint = "look for 0 / 0 and inf - inf in what model and guide make of extreme draws, and for NaN among the arguments"
    if not ranked.any():
        what = "simulation_based_calibration: every simulation has something that cannot be ranked"
        fail(ValueError, what, expected="numbers", found=f"NaN in comparisons of {names}", hint=hint)
    warnings.warn(
        f"simulation_based_calibration: {np.sum(~ranked):,} of {ranked.size:,} simulations are left out, as comparisons"
        f" of {names} are NaN: {hint}.",
        stacklevel=4,
    )
    return jax.tree.map(lambda numbers: np.asarray(numbers)[ranked], compared)


def _side_by_side(numbers: list[tuple[jax.Array, jax.Array]], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of a site from its scalars."""
    below, tied = (np.stack([pair[i] for pair in numbers], axis=1).reshape(-1, *shape) for i in (0, 1))
    return below, tied


def _check_number(value: Any, option: str, usual: int) -> None:
    check_int(value, option, 1, expected="an int >= 1", hint=f"pass {option}={usual}, say")
