"""Checks of single options: of which kind they are, and in which range."""

import numbers
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding

from rws_jax.checks.arguments import check_int
from rws_jax.core.errors import describe, fail


def check_insomnia(value: Any) -> None:
    """Check that insomnia is a number in [0, 1], or a schedule."""
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


def check_defensive(value: Any) -> None:
    """Check that a share of defensive proposals is in [0, 1)."""
    wrong_type = not _is_number(value)
    if wrong_type or not 0.0 <= float(value) < 1.0:  # NaN is not either
        fail(
            TypeError if wrong_type else ValueError,
            "option 'defensive' has the wrong type" if wrong_type else "option 'defensive' is out of range",
            expected="a number in [0, 1), the share of particles that do not come from the guide",
            found=describe(value) if wrong_type else f"{value}",
            hint="0.2 is customary; 0.0 draws all particles from the guide",
        )


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


def check_gradient(value: Any, guides_of: Mapping[str, str]) -> None:
    """Check that a gradient is one of those known, which are for `guides_of` some kind each."""
    if not isinstance(value, str) or value not in guides_of:
        fail(
            ValueError,
            "option 'gradient' is unknown",
            expected=" or ".join(f"{name!r}, for {guides}" for name, guides in guides_of.items()),
            found=describe(value),
            hint="'score' is right for every guide",
        )


def fail_defensive_draws(gradient: str, defensive: float, others: list[str]) -> NoReturn:
    """Some gradients pass through the draws."""
    fail(
        ValueError,
        "options 'gradient' and 'defensive' do not go together",
        expected=f"gradient={' or '.join(map(repr, others))} with defensive proposals, or defensive=0.0 with"
        f" gradient={gradient!r}",
        found=f"gradient={gradient!r}, defensive={defensive}",
        hint="particles that do not come from the guide have no path to its parameters",
    )


def check_sleep_options(rewrite: Any, observed_sites: Any) -> None:
    """Check that options of sleep are a function or None, and a tuple of names."""
    if rewrite is not None and not callable(rewrite):
        fail(
            TypeError,
            "option 'simulated_data_to_args' is not callable",
            expected="a function (sim_data, *args, **kwargs) -> (args, kwargs), or None",
            found=describe(rewrite),
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


def check_data_axes(value: Any) -> None:
    """Check that axes of data are one axis, or one or None for each argument."""
    is_axis = lambda axis: isinstance(axis, int) and not isinstance(axis, bool)
    axes = value if isinstance(value, tuple) else (value,)
    if value is not None and not all(is_axis(axis) or (axis is None and isinstance(value, tuple)) for axis in axes):
        fail(
            TypeError,
            "option 'data_axes' has the wrong type",
            expected="an int, a tuple of an int or None for each positional argument, or None",
            found=describe(value),
            hint="data_axes=0 for programs of one datum, given arrays with a datum in each row",
        )


def check_has_data(axes: Any, size: int) -> None:
    """Check that what chunks of data are of is known: programs of all data run on all of them at once."""
    if axes is None:
        fail(
            ValueError,
            "option 'data_chunk_size' is given, but option 'data_axes' is not",
            expected="programs written for one datum, and data_axes=0, say, the axis of data in the arguments",
            found=f"data_axes=None, data_chunk_size={size}",
            hint="programs with a plate of all data run on whole arrays: write them for one datum, without that plate",
        )


def check_sharding(value: Any) -> None:
    """Check that particles are divided over named axes of a mesh."""
    axes = value.spec[0] if isinstance(value, NamedSharding) and len(value.spec) == 1 else None
    names = axes if isinstance(axes, tuple) else (axes,)
    if not all(isinstance(name, str) for name in names) or not isinstance(value.mesh, Mesh):
        fail(
            TypeError,
            "option 'particle_sharding' is not a sharding of particles",
            expected="a jax.sharding.NamedSharding that names the axis of a mesh",
            found=f"{value}" if isinstance(value, NamedSharding) else describe(value),
            hint="particle_sharding=NamedSharding(mesh, PartitionSpec('particles')), for a mesh with such an axis",
        )


def check_phi_steps(value: Any) -> None:
    """Check that there is at least one update of the guide in each step."""
    check_int(
        value,
        "phi_steps",
        1,
        expected="an int >= 1, the number of guide updates for each update of the model",
        hint="phi_optimizer=optax.set_to_zero() leaves the guide as it is",
    )


def check_constant_insomnia(value: Any) -> None:
    """Check that the share of wake-phi is no schedule, which `SVI` cannot follow."""
    if callable(value):
        fail(
            TypeError,
            "option 'insomnia' is a schedule, which ReweightedWakeSleep cannot follow",
            expected="a number in [0, 1]: SVI does not tell its loss how many steps it has made",
            found=describe(value),
            hint="train by rws_jax.make_step, which takes schedules",
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


def _is_number(value: Any) -> bool:
    scalar = isinstance(value, jax.Array) and value.ndim == 0 and not isinstance(value, Tracer)
    return not isinstance(value, bool) and (scalar or isinstance(value, numbers.Real))
