"""Posterior samples of equal weight, as an argument that particles of the model take for themselves."""

from dataclasses import replace
from typing import Any

import jax

from rws_jax.checks.arguments import check_int
from rws_jax.checks.predictive import (
    check_same_data,
)
from rws_jax.options import ExecutionOptions
from rws_jax.posterior.samples.weighted import WeightedSamples
from rws_jax.programs.predict import Kept
from rws_jax.programs.program import Arguments, Programs


def check_num_samples(num_samples: Any) -> None:
    """Check a number of samples."""
    expected, hint = "an int >= 1, how many samples to draw", "pass num_samples=1000, say"
    check_int(num_samples, "num_samples", 1, expected=expected, hint=hint)


def resampled(weighted: WeightedSamples, indices: jax.Array, but: tuple[str, ...] = ()) -> Kept:
    """Posterior samples of equal weight, and which of their numbers are there."""
    present = replace(weighted, samples=weighted.present)
    return Kept(
        {name: weighted.taken(name, indices) for name in weighted.samples if name not in but},
        {name: present.taken(name, indices) for name in weighted.present if name not in but},
    )


def with_samples(
    programs: Programs, execution: ExecutionOptions, weighted: WeightedSamples, kept: Kept
) -> tuple[Programs, ExecutionOptions]:
    """Pass posterior samples to particles as one argument more, which has all of them for each datum."""
    args, kwargs = programs.arguments
    if kept.values:
        check_same_data(execution.data.count(programs), weighted.units, weighted.log_weights.shape[1:])
    return programs.with_arguments(Arguments((*args, kept), kwargs)), execution.with_argument(len(args), axis=1)
