"""What simulation-based calibration is called with: levels, numbers, and nothing that is traced."""

import numbers
from collections.abc import Iterable
from typing import Any

from rws_jax.core.errors import describe, fail
from rws_jax.core.trees import is_traced

_HINT = "levels=(0.5, 0.8, 0.95), say"


def check_levels(levels: Any) -> tuple[float, ...]:
    """Check that levels are probabilities, and return them in order."""
    is_many = isinstance(levels, Iterable) and not isinstance(levels, str)
    values: tuple[Any, ...] = tuple(levels) if is_many else ()
    if not values or not all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values):
        fail(
            TypeError,
            "option 'levels' has the wrong type",
            expected="probabilities, one or more",
            found=describe(levels),
            hint=_HINT,
        )
    if not all(0.0 < value < 1.0 for value in values):
        fail(
            ValueError,
            "option 'levels' is out of range",
            expected="numbers between 0 and 1, exclusive",
            found=f"{levels}",
            hint=_HINT,
        )
    return tuple(sorted(map(float, values)))


def check_known(programs: Any) -> None:
    """Ranks are tested on the host."""
    if is_traced(programs):
        fail(
            ValueError,
            "simulation_based_calibration is traced by jit, vmap or grad",
            expected="a call with known parameters, keys and arguments: ranks are tested on the host",
            found="a traced value among them",
            hint="call it outside of these; what it runs is compiled by itself",
        )


def check_num_draws(num_dreams: int, num_samples: int) -> None:
    """Each draw of each dream has a number of its own, an int32."""
    if num_dreams * num_samples >= 2**31:
        fail(
            ValueError,
            "there are too many draws of all dreams together",
            expected=f"fewer than {2**31:,}",
            found=f"{num_dreams:,} dreams with {num_samples:,} draws each",
            hint="ask for fewer simulations, or for fewer draws of each",
        )
