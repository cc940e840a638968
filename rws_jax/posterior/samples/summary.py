"""What weighted samples are in a few lines of text: units, evidence, and how far to trust the weights."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from rws_jax.core.summaries import entry
from rws_jax.core.text import listed
from rws_jax.posterior.samples.psis import is_available, pareto_smoothed

if TYPE_CHECKING:
    from rws_jax.posterior.samples.weighted import WeightedSamples

THRESHOLD = 0.7  # of k-hat, above which importance sampling is not to be trusted (Vehtari et al. 2024)
MIN_PARTICLES = 25  # with fewer ArviZ fits no tail
_ALMOST_EQUAL = 0.9  # of K, an effective sample size from which on weights are almost equal
_MAX_UNITS = 10_000  # of which k-hat is computed for a summary, in some seconds


def summary(weighted: "WeightedSamples") -> str:
    """Units, evidence, effective sample size, share of units with k-hat above 0.7, and what to do about it."""
    log_weights = np.asarray(weighted.log_weights)
    num, shape = len(log_weights), log_weights.shape[1:]
    units = _units(weighted.units, shape)
    if _of_steps(weighted):
        units = f"each of {_counted(shape[-1], 'step')}, by the data up to it"
        units += f", in each of {math.prod(shape[:-1]):,} data" if len(shape) > 1 else ""
    head = f"WeightedSamples: {_counted(num, 'particle')} of {units}"
    lines = {"latents": ", ".join(f"{name} {entry(value)}" for name, value in weighted.samples.items()) or "none"}
    if not math.prod(shape):
        return _written(head, lines, [])
    sentences, trusted = _of_numbers(log_weights), True
    if weighted.resampled:
        tail = "not known of particles that were resampled"
        sentences.append(
            "Particles were resampled along the scan, and share ancestors: no standard error is known."
            f"{'' if _of_steps(weighted) else ' The effective sample size is that of the last weights alone.'}"
            " Draw by other keys to see how far estimates move."
        )
    elif not is_available():
        tail = 'not known without ArviZ: pip install "rws_jax[posterior]"'
    elif math.prod(shape) > _MAX_UNITS:
        tail = "of so many units by weighted.pareto_k()"
    elif num < MIN_PARTICLES:
        tail = f"not known of fewer than {MIN_PARTICLES} particles"
    else:
        k = pareto_smoothed(log_weights)[1]
        text, trusted = advice(weighted, k), not np.any(_is_bad(weighted, k))
        sentences += [text or _harmless(weighted, k)] if text or not sentences else []
        tail = f"above {THRESHOLD} in {np.sum(k > THRESHOLD):,} of {_counted(k.size, 'unit')}"
        if k.size == 1:
            tail = "none, as the weights have no tail" if np.all(k == -np.inf) else f"{k.item():.2f}"
    estimates = _estimates(weighted, trusted)
    if _of_steps(weighted):
        estimates.pop("log evidence")  # of data that contain one another there is no sum
    lines |= estimates | {"Pareto k-hat": tail}
    return _written(head, lines, sentences)


def advice(weighted: "WeightedSamples", k: np.ndarray) -> str | None:
    """What to do about units whose k-hat is above 0.7; None if there are none that are not harmless."""
    bad = _is_bad(weighted, k)
    if not np.any(bad):
        return None
    worst = _at(np.argmax(np.where(bad, k, -np.inf)), k.shape)
    which = f" in {np.sum(bad):,} of {_counted(bad.size, 'unit')}, {worst} the worst" if k.size > 1 else ""
    joint = " All data share one weight, as no plate is common to all sites: units of their own would help most."
    ess = f"{np.min(_ess(weighted)[bad]):.4g} of {len(weighted.log_weights):,}{' at least' if np.sum(bad) > 1 else ''}"
    wider = "draw more particles; or pass defensive=0.2, or more, by which a share of them is drawn from the prior."
    if weighted.nested:
        wider = "draw more particles, by num_particles and by num_local_particles."
    return (
        f"Pareto k-hat is above {THRESHOLD}{which}: the weights have so heavy a tail that evidence, expectations and"
        f" their errors may rest on a few particles (effective sample size there: {ess})."
        f"{_structure(weighted) or ('' if weighted.units else joint)} Train the guide for longer, also on dreams"
        f" (insomnia below 1), or give it wider tails; {wider}"
    )


def _structure(weighted: "WeightedSamples") -> str:
    """What to do where latents are in plates that not all sites are in."""
    inner = {plate for _, dims in weighted.dims for plate in dims if plate is not None} - set(weighted.units)
    plates = listed(map(repr, sorted(inner)))
    what = "its elements" if len(inner) == 1 else "their elements"
    pass_on = f"num_local_particles=10, say, may give {what} particles and weights of their own."
    if not inner or weighted.nested:
        return ""
    return f" A particle has one weight for all of plate{'s' * (len(inner) > 1)} {plates}: {pass_on}"


def _is_bad(weighted: "WeightedSamples", k: np.ndarray) -> np.ndarray:
    """Units whose weights have a heavy tail; not dead ones, nor those of almost equal weights, where it fits noise."""
    if len(weighted.log_weights) < MIN_PARTICLES:
        return np.zeros(k.shape, bool)
    ess = _ess(weighted)
    return (k > THRESHOLD) & (ess > 0) & (ess < _ALMOST_EQUAL * len(weighted.log_weights))


def _harmless(weighted: "WeightedSamples", k: np.ndarray) -> str:
    """What is said where there is nothing to be done."""
    if not np.any(k > THRESHOLD):
        return "The weights show no heavy tail."
    ess = f"{np.min(_ess(weighted)[k > THRESHOLD]):.4g} of {len(weighted.log_weights):,}"
    return (
        f"Where k-hat is above {THRESHOLD}, weights are almost equal (effective sample size {ess} at least), and its"
        " fit means little."
    )


def _estimates(weighted: "WeightedSamples", trusted: bool) -> dict[str, str]:
    """Evidence and effective sample size, of the units that have them."""
    evidence, ess = weighted.log_evidence(), np.ravel(_ess(weighted))
    values, errors = np.ravel(evidence.value), np.ravel(evidence.standard_error)
    finite, shape = np.isfinite(values), weighted.log_weights.shape[1:]
    if not np.any(finite):
        return {"log evidence": f"{values[0]}" if values.size == 1 else "of no unit finite"}
    error = np.sqrt(np.sum(errors[finite] ** 2))
    decimals = min(6, max(0, -math.floor(math.log10(error)))) if error > 0 else 4
    total = f"{np.sum(values[finite]):.{decimals}f}"
    total += f" ± {error:.1g} nats" if trusted and not math.isnan(error) else " nats"
    total += "" if trusted else ", or more,"
    if values.size == 1:
        return {"log evidence": total, "effective sample size": f"{ess[0]:.4g}"}
    others = "" if np.all(finite) else f" of the other {_counted(np.sum(finite), 'unit')}"
    mean, place = np.mean(values[finite]), np.argmin(np.where(finite, ess, np.inf))
    return {
        "log evidence": f"{total} in all{others}, {mean:.4g} for each unit on average",
        "effective sample size": f"{np.median(ess[finite]):.4g} in the median, {ess[place]:.4g} at least, in unit"
        f" {_at(place, shape)}",
    }


def _ess(weighted: "WeightedSamples") -> np.ndarray:
    return np.asarray(weighted.effective_sample_size())


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
        return "one datum" if shape == (1,) else f"each of {shape[0]:,} data"
    plates = " and ".join(f"plate {unit!r}" for unit in units)
    if math.prod(shape) == 1:
        return f"one unit, the element of {plates}"
    return f"each of {_counted(math.prod(shape), 'unit')}, the elements of {plates}"


def _of_steps(weighted: "WeightedSamples") -> bool:
    """Whether these are the draws of single steps, each with weights by the data up to it."""
    return weighted.resampled and weighted.filtering is None


def _at(position: Any, shape: tuple[int, ...]) -> str:
    """The index of a unit, as one writes it in brackets."""
    return f"[{', '.join(map(str, np.unravel_index(int(position), shape)))}]"


def _written(head: str, lines: dict[str, str], sentences: list[str]) -> str:
    width = max(map(len, lines)) + 2
    rows = [f"  {name:<{width}}{text}" for name, text in lines.items()]
    paragraphs = [textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ") for text in sentences]
    return "\n".join([head, *rows, *paragraphs])
