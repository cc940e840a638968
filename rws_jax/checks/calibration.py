"""What comparisons with dreams are called with: levels, numbers, nothing that is traced, and guides that read data."""

import numbers
import warnings
from collections.abc import Iterable
from typing import Any

from numpyro.infer.autoguide import AutoGuide

from rws_jax.checks.routes import name_of
from rws_jax.core.errors import describe, fail
from rws_jax.core.layers import unwrapped
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


def check_not_automatic(guide: Any, function: str) -> None:
    """An automatic guide never reads data: it is an answer for those that it was fitted to."""
    bare = unwrapped(guide)
    if isinstance(bare, AutoGuide):
        fail(
            ValueError,
            f"{function} cannot test the automatic guide {name_of(bare)}: it was fitted to one data set, and dreams are"
            " others",
            expected="a guide that reads its data, so that it has an answer for each dream",
            found=f"{name_of(bare)}, which reads no data",
            hint="write a guide whose distributions depend on its data; for this one compare data with"
            " rws_jax.posterior_predictive, and look at k-hat of rws_jax.importance_sample",
        )


def warn_of_blind(guide: Any, function: str) -> None:
    """What is said of a guide that reads no data: a prior can be tested so, but no guide that was fitted to data."""
    warnings.warn(
        f"{function}: the guide {name_of(unwrapped(guide))} reads no data. If it was fitted to one data set, it cannot"
        " be tested on dreams, which are others, and the result means nothing. Pass a guide that reads its data",
        stacklevel=4,
    )
