"""What weighted samples are in a few lines of text: units, evidence, and how far to trust the weights."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from rws_jax.core.summaries import entry
from rws_jax.posterior.samples.psis import is_available, pareto_smoothed

if TYPE_CHECKING:
    from rws_jax.posterior.samples.weighted import WeightedSamples

THRESHOLD = 0.7  # of k-hat, above which importance sampling is not to be trusted (Vehtari et al. 2024)
MIN_PARTICLES = 25  # with fewer ArviZ fits no tail
_MAX_UNITS = 10_000  # of which k-hat is computed for a summary: it takes a tenth of a second for each hundred


def summary(weighted: "WeightedSamples") -> str:
    """Units, evidence, effective sample size, share of units with k-hat above 0.7, and what to do about it."""
    num, shape = len(weighted.log_weights), weighted.log_weights.shape[1:]
    head = f"WeightedSamples: {_counted(num, 'particle')} of {_units(weighted.units, shape)}"
    lines = {"latents": ", ".join(f"{name} {entry(value)}" for name, value in weighted.samples.items()) or "none"}
    if not math.prod(shape):
        return _written(head, lines, [])
    evidence, ess = weighted.log_evidence(), np.ravel(weighted.effective_sample_size())
    values, errors = np.ravel(evidence.value), np.ravel(evidence.standard_error)
    of_all = f"{np.sum(values):.6g}" + (f" ± {np.sqrt(np.sum(errors**2)):.1g} nats" if num > 1 else " nats")
    lines["log evidence"] = of_all if not shape else f"{of_all} in all, {np.mean(values):.4g} for each unit on average"
    worst = f"{np.median(ess):.4g} in the median, {np.min(ess):.4g} at least, in unit {_at(np.argmin(ess), shape)}"
    lines["effective sample size"] = worst if shape else f"{ess[0]:.4g}"
    sentences = _of_numbers(np.asarray(weighted.log_weights))
    if not is_available():
        lines["Pareto k-hat"] = 'not known without ArviZ: pip install "rws_jax[arviz]"'
    elif values.size > _MAX_UNITS:
        lines["Pareto k-hat"] = "of so many units by weighted.pareto_k()"
    elif num < MIN_PARTICLES:
        lines["Pareto k-hat"] = f"not known of fewer than {MIN_PARTICLES} particles"
    else:
        k = pareto_smoothed(np.asarray(weighted.log_weights))[1]
        share = f"above {THRESHOLD} in {np.sum(k > THRESHOLD):,} of {_counted(k.size, 'unit')}"
        lines["Pareto k-hat"] = share if shape else "none, as the weights have no tail" if k == -np.inf else f"{k:.2f}"
        sentences += [text for text in [advice(weighted, k)] if text]
        sentences = sentences or ["The weights can be trusted."]
    return _written(head, lines, sentences)


def advice(weighted: "WeightedSamples", k: np.ndarray) -> str | None:
    """What to do about units whose k-hat is above 0.7; None if there are none. Dead units are another matter."""
    alive = np.any(np.asarray(weighted.log_weights) != -np.inf, axis=0)
    bad = k > THRESHOLD
    if not np.any(bad & alive) or len(weighted.log_weights) < MIN_PARTICLES:
        return None
    shape = weighted.log_weights.shape[1:]
    worst = _at(np.argmax(np.where(bad & alive, k, -np.inf)), shape)
    which = f" in {np.sum(bad):,} of {_counted(bad.size, 'unit')}, {worst} the worst" if shape else ""
    joint = " All data share one weight, as no plate is common to all sites: units of their own would help most."
    ess = np.min(np.asarray(weighted.effective_sample_size())[bad & alive])
    ess = f"{ess:.4g} of {len(weighted.log_weights):,}{' at least' if shape else ''}"
    return (
        f"Pareto k-hat is above {THRESHOLD}{which}: the weights have so heavy a tail that evidence, expectations and"
        f" their errors may rest on a few particles (effective sample size there: {ess})."
        f"{'' if weighted.units else joint} Train the guide for longer, also on dreams"
        " (insomnia below 1), or give it wider tails; draw more particles; or pass defensive=0.2, by which a share of"
        " them is drawn from the prior."
    )


def dead_units(log_weights: np.ndarray) -> str | None:
    """A sentence on units without a live particle; None if there are none."""
    dead = ~np.any(log_weights != -np.inf, axis=0)
    if not np.any(dead):
        return None
    which = f": {_counted(np.sum(dead), 'unit')} of {dead.size:,}, {_at(np.argmax(dead), dead.shape)} the first"
    return (
        f"No particle has a weight above zero{which if dead.shape else ''}. The data may lie outside of the model's"
        " support or be NaN, or the guide proposes nothing that the model can be: draw more particles, or pass"
        " defensive=0.2."
    )


def _of_numbers(log_weights: np.ndarray) -> list[str]:
    """Sentences on units that are dead, or whose weights are no numbers."""
    dead = dead_units(log_weights)
    wrong = np.any(np.isnan(log_weights) | (log_weights == np.inf), axis=0)
    which = (
        f" of {_counted(np.sum(wrong), 'unit')}, {_at(np.argmax(wrong), wrong.shape)} the first," if wrong.shape else ""
    )
    return ([] if dead is None else [dead]) + [f"Weights{which} are no finite numbers."] * bool(np.any(wrong))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _units(units: tuple[str, ...], shape: tuple[int, ...]) -> str:
    if not units:
        return "one unit, all data together: no plate is common to all sites"
    if units == ("datum",):
        return f"each of {shape[0]:,} data"
    plates = " and ".join(f"plate {unit!r}" for unit in units)
    return f"each of {_counted(math.prod(shape), 'unit')}, the elements of {plates}"


def _at(position: Any, shape: tuple[int, ...]) -> str:
    """The index of a unit, as one writes it in brackets."""
    return f"[{', '.join(map(str, np.unravel_index(int(position), shape)))}]"


def _written(head: str, lines: dict[str, str], sentences: list[str]) -> str:
    width = max(map(len, lines)) + 2
    rows = [f"  {name:<{width}}{text}" for name, text in lines.items()]
    paragraphs = [textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ") for text in sentences]
    return "\n".join([head, *rows, *paragraphs])
