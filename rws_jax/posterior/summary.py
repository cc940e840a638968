"""What weighted samples are in a few lines of text: units, evidence, and how far to trust the weights."""

from typing import TYPE_CHECKING

import numpy as np

from rws_jax.core.summaries import entry
from rws_jax.posterior.psis import is_available, pareto_smoothed

if TYPE_CHECKING:
    from rws_jax.posterior.weighted import WeightedSamples

THRESHOLD = 0.7  # of k-hat, above which importance sampling is not to be trusted (Vehtari et al. 2024)
_MAX_UNITS = 10_000  # of which k-hat is computed for a summary: it takes a tenth of a second for each hundred


def summary(weighted: "WeightedSamples") -> str:
    """Units, evidence, effective sample size, share of units with k-hat above 0.7, and what to do about it."""
    num, shape = weighted.num_particles, weighted.log_weights.shape[1:]
    head = f"WeightedSamples: {num:,} particles of {_units(weighted.units, shape)}"
    lines = {"latents": ", ".join(f"{name} {entry(value)}" for name, value in weighted.samples.items()) or "none"}
    if not np.prod(shape):
        return _written(head, lines, [])
    evidence, ess = weighted.log_evidence(), np.ravel(weighted.effective_sample_size())
    values, errors = np.ravel(evidence.value), np.ravel(evidence.standard_error)
    of_all = f"{np.sum(values):.6g} ± {np.sqrt(np.sum(errors**2)):.1g} nats"
    lines["log evidence"] = of_all if not shape else f"{of_all} in all, {np.mean(values):.4g} for each unit on average"
    worst = f", in unit {_at(int(np.argmin(ess)), shape)}" if shape else ""
    lines["effective sample size"] = (
        f"{ess[0]:.4g}" if not shape else f"{np.median(ess):.4g} in the median, {np.min(ess):.4g} at least{worst}"
    )
    advices = _of_numbers(values, shape)
    if not is_available():
        lines["Pareto k-hat"] = 'not known without ArviZ: pip install "rws_jax[arviz]"'
    elif values.size > _MAX_UNITS:
        lines["Pareto k-hat"] = "of so many units by weighted.pareto_k()"
    else:
        k = pareto_smoothed(np.asarray(weighted.log_weights))[1]
        share = f"above {THRESHOLD} in {np.sum(k > THRESHOLD):,} of {k.size:,} units" if shape else f"{float(k):.2f}"
        lines["Pareto k-hat"] = share
        advices += filter(None, [advice(weighted, k)])
        if not advices:
            advices = ["The weights can be trusted."]
    return _written(head, lines, advices)


def advice(weighted: "WeightedSamples", k: np.ndarray) -> str | None:
    """What to do about units whose k-hat is above 0.7; None if there are none."""
    bad = np.ravel(k) > THRESHOLD
    if not np.any(bad):
        return None
    shape = weighted.log_weights.shape[1:]
    which = (
        f"in {np.sum(bad):,} of {bad.size:,} units, {_at(int(np.nanargmax(k)), shape)} the worst" if shape else "here"
    )
    why = (
        " All data share one weight, as no plate is common to all sites: units of their own would help most."
        if not weighted.units
        else ""
    )
    return (
        f"Pareto k-hat is above {THRESHOLD} {which}: a few particles have most of the weight, and neither evidence"
        f" nor expectations are to be trusted.{why} Train the guide for longer, also on dreams (insomnia below 1), or"
        " give it wider tails; draw more particles; or pass defensive=0.2, by which a share of them is of the prior."
    )


def _of_numbers(values: np.ndarray, shape: tuple[int, ...]) -> list[str]:
    """Sentences on units that are dead, or whose weights are no numbers."""
    found = []
    for name, wrong in {
        "no particle of weight above zero": values == -np.inf,
        "NaN among their weights": np.isnan(values),
    }.items():
        if np.any(wrong):
            where = f"{np.sum(wrong):,} units have {name}, the first of them {_at(int(np.argmax(wrong)), shape)}."
            found.append(where if shape else f"There is {name}.")
    return found


def _units(units: tuple[str, ...], shape: tuple[int, ...]) -> str:
    if not units:
        return "one unit, all data together: no plate is common to all sites"
    if units == ("datum",):
        return f"each of {shape[0]:,} data"
    return f"each of {np.prod(shape, dtype=int):,} units, the elements of " + " and ".join(
        f"plate {unit!r}" for unit in units
    )


def _at(position: int, shape: tuple[int, ...]) -> str:
    """The index of a unit, as one writes it in brackets."""
    return f"[{', '.join(map(str, np.unravel_index(position, shape)))}]"


def _written(head: str, lines: dict[str, str], advices: list[str]) -> str:
    width = max(map(len, lines)) + 2
    return "\n".join(
        [head, *(f"  {name:<{width}}{text}" for name, text in lines.items()), *(f"  {text}" for text in advices)]
    )
