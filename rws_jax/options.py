"""The options of the losses, checked as they are made; `make_step` and the losses take the same."""

import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from rws_jax.layout import Layout
from rws_jax.validation import check_flag, check_int, describe, fail


@dataclass(frozen=True)
class WakeOptions:
    """How particles are drawn, and what becomes of them in wake-phi; see `wake_phi_loss`."""

    num_particles: int
    control_variate: bool = True
    defensive: float = 0.0
    gradient: str = "score"
    layout: Layout = field(default_factory=Layout)

    def __post_init__(self) -> None:
        check_flag(self.control_variate, "control_variate")
        _check_defensive(self.defensive)
        _check_gradient(self.gradient, self.defensive)


@dataclass(frozen=True)
class SleepOptions:
    """How dreams are drawn and shown to the guide; see `sleep_phi_loss`."""

    num_particles: int
    simulated_data_to_args: Callable[..., tuple[tuple, dict]] | None = None
    observed_sites: tuple[str, ...] = ()
    layout: Layout = field(default_factory=Layout)

    def __post_init__(self) -> None:
        check_num_particles(self.num_particles, "num_particles", self.layout, minimum=1)
        _check_sleep_options(self.simulated_data_to_args, self.observed_sites)


def check_num_particles(value: Any, option: str, layout: Layout, *, minimum: int) -> None:
    """An int of at least `minimum` that can be laid out so."""
    why = " (with one particle every weight is 1, and wake-phi learns nothing)" if minimum > 1 else ""
    check_int(
        value,
        option,
        minimum,
        expected=f"an int >= {minimum}{why}",
        hint=f"pass {option}=10, say; effective sample sizes in the info tell whether more are needed",
    )
    layout.check_divides(value, option)


def check_insomnia(value: Any) -> None:
    """A number in [0, 1], or a schedule."""
    if callable(value):
        return
    if not _is_number(value):
        fail(
            TypeError,
            "option 'insomnia' has the wrong type",
            expected="a number in [0, 1], or a function of the step count as optax's schedules are",
            found=describe(value),
            hint="1.0 trains the guide on wake-phi alone, 0.0 on sleep-phi alone, 0.5 on both",
        )
    if not 0.0 <= float(value) <= 1.0:  # NaN is not either
        fail(
            ValueError,
            "option 'insomnia' is out of range",
            expected="a number in [0, 1]",
            found=f"{value}",
            hint="1.0 trains the guide on wake-phi alone, 0.0 on sleep-phi alone, 0.5 on both",
        )


def check_scheduled_insomnia(value: Any) -> None:
    """What an insomnia schedule returned must be one number, and in [0, 1] where it can be seen."""
    if jnp.shape(value) != ():
        fail(
            TypeError,
            "the schedule given as option 'insomnia' does not return a number",
            expected="a scalar for each step count",
            found=f"shape {jnp.shape(value)}",
            hint="optax.linear_schedule(1.0, 0.5, 1000) is such a schedule",
        )
    if not isinstance(value, Tracer):
        check_insomnia(float(value))


def check_defensive_share(defensive: float, defensive_guide: Any) -> None:
    """A defensive guide of which nothing is drawn would play no part."""
    if defensive_guide is None:
        return
    if not defensive:
        fail(
            ValueError,
            "option 'defensive_guide' is given, but option 'defensive' is 0",
            expected="a share of particles to draw from it, defensive=0.2, say",
            found=f"defensive={defensive}",
            hint="pass defensive as well, or leave out defensive_guide",
        )


def check_max_plate_nesting(value: Any) -> None:
    """Pyro's bound on nested plates, which plays no part here."""
    if not _is_number(value):
        fail(
            TypeError,
            "option 'max_plate_nesting' has the wrong type",
            expected="a number, as in Pyro",
            found=describe(value),
            hint="leave it out: particles take no dim of the programs",
        )


def check_phi_steps(value: Any) -> None:
    """An int of at least 1."""
    check_int(
        value,
        "phi_steps",
        1,
        expected="an int >= 1, the number of guide updates for each update of the model",
        hint="phi_optimizer=optax.set_to_zero() leaves the guide as it is",
    )


def _is_number(value: Any) -> bool:
    scalar = isinstance(value, jax.Array) and value.ndim == 0 and not isinstance(value, Tracer)
    return not isinstance(value, bool) and (scalar or isinstance(value, numbers.Real))


def _check_defensive(value: Any) -> None:
    wrong_type = not _is_number(value)
    if wrong_type or not 0.0 <= float(value) < 1.0:  # NaN is not either
        fail(
            TypeError if wrong_type else ValueError,
            "option 'defensive' has the wrong type" if wrong_type else "option 'defensive' is out of range",
            expected="a number in [0, 1), the share of particles that do not come from the guide",
            found=describe(value) if wrong_type else f"{value}",
            hint="0.2 is customary; 0.0 draws all particles from the guide",
        )


def _check_gradient(value: Any, defensive: float) -> None:
    if not isinstance(value, str) or value not in ("score", "dreg"):
        fail(
            ValueError,
            "option 'gradient' is unknown",
            expected="'score', or 'dreg' for reparameterised guides",
            found=describe(value),
            hint="'score' is right for every guide",
        )
    if value == "dreg" and defensive:
        fail(
            ValueError,
            "options 'gradient' and 'defensive' do not go together",
            expected="gradient='score' with defensive proposals, or defensive=0.0 with gradient='dreg'",
            found=f"gradient='dreg', defensive={defensive}",
            hint="particles that do not come from the guide have no path to its parameters",
        )


def _check_sleep_options(simulated_data_to_args: Any, observed_sites: Any) -> None:
    """A function or None, and a tuple of names."""
    if simulated_data_to_args is not None and not callable(simulated_data_to_args):
        fail(
            TypeError,
            "option 'simulated_data_to_args' is not callable",
            expected="a function (sim_data, *args, **kwargs) -> (args, kwargs), or None",
            found=describe(simulated_data_to_args),
            hint="simulated_data_to_args=lambda sim, *args, **kwargs: ((sim['x'],), {})",
        )
    listed = isinstance(observed_sites, tuple | list)
    if not listed or not all(isinstance(name, str) for name in observed_sites):
        fail(
            TypeError,
            "option 'observed_sites' has the wrong type",
            expected="a tuple of site names",
            found=describe(observed_sites),
            hint="observed_sites=('x',), with the comma",
        )
