"""Checks of options that give parts of a particle weights of their own."""

import numbers
from typing import Any, NoReturn

from rws_jax.core.errors import describe, fail


def check_local_numbers(value: Any) -> None:
    """Check which random numbers local particles have."""
    if not isinstance(value, str) or value not in ("common", "independent"):
        fail(
            ValueError,
            "option 'local_numbers' is unknown",
            expected="'common', the same random numbers for every particle, or 'independent'",
            found=describe(value),
            hint="'common' trains guides of many data; 'independent' estimates the evidence with less bias",
        )


def check_resample(value: Any) -> None:
    """Check how particles are resampled."""
    if value is not None and value != "systematic":
        fail(
            ValueError,
            "option 'resample' is unknown",
            expected="'systematic', to resample along a numpyro.contrib.control_flow.scan, or None",
            found=describe(value),
            hint="pass resample='systematic', or leave it out: each particle then has one weight for all steps",
        )


def check_resample_below(value: Any) -> None:
    """Check the share of particles below which they are resampled."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0.0 < float(value) <= 1.0:  # NaN is not either
        fail(
            ValueError if is_number else TypeError,
            "option 'resample_below' is " + ("out of range" if is_number else "no number"),
            expected="a number in (0, 1], a share of the particles",
            found=describe(value),
            hint="0.5 resamples where the effective sample size is below half the number of particles; 1.0 always",
        )


def fail_both(num_local: int, resample: str) -> NoReturn:
    """Weights are structured along plates or along time."""
    fail(
        ValueError,
        "options 'num_local_particles' and 'resample' do not go together",
        expected="weights for elements of plates, or weights for steps of a scan",
        found=f"num_local_particles={num_local}, resample={resample!r}",
        hint="leave out one of them",
    )


def check_gradient(name: str, gradient: str) -> None:
    """Other gradients are functions of one weight for each particle."""
    if gradient != "score":
        _fail_together(name, "gradient='score'", f"gradient={gradient!r}", "leave gradient out")


def check_not_defensive(name: str, share: float) -> None:
    """A defensive mixture is one of whole draws."""
    if share:
        hint = "mix proposals inside of the guide, by numpyro.distributions.MixtureSameFamily, say"
        _fail_together(name, "defensive=0.0", f"defensive={share}", hint)


def check_vectorized(name: str, one_by_one: bool) -> None:
    """Local particles are mapped over."""
    if one_by_one:
        hint = (
            "leave vectorize_particles out; it is for programs that branch in Python, which have one weight a particle"
        )
        _fail_together(name, "vectorize_particles=True", "vectorize_particles=False", hint)


def check_not_chunked(name: str, chunk_size: int | None) -> None:
    """Particles that are resampled need one another at every step."""
    if chunk_size is not None:
        hint = "spread particles over devices, by particle_sharding, where memory is short"
        _fail_together(name, "chunk_size=None", f"chunk_size={chunk_size}", hint)


def _fail_together(name: str, expected: str, found: str, hint: str) -> NoReturn:
    what = f"options {name.split('=')[0]!r} and {found.split('=')[0]!r} do not go together"
    fail(ValueError, what, expected=f"{expected} with {name}", found=found, hint=hint)
