"""Checks of what `fit` is called with, and of what the step that it is given returns."""

from typing import Any

from rws_jax.checks.arguments import check_flag, check_int, check_state
from rws_jax.core.errors import describe, fail
from rws_jax.core.trees import is_traced
from rws_jax.training.batches import check_batches
from rws_jax.training.dispatch import Dispatched, NotJittable
from rws_jax.training.state import RWSInfo, RWSState

EVALUATE = "lambda state: rws.evaluate(state, x_test)"


def check_call(
    step: Any,
    state: Any,
    num_steps: Any,
    batches: Any,
    steps_per_block: Any,
    callback: Any,
    max_nonfinite_steps: Any,
    progress_bar: Any,
    evaluate: Any,
    evaluate_every: Any,
    *,
    has_arguments: bool,
) -> None:
    """Check that the arguments of `fit` are of the right kinds."""
    kinds = [
        (callable(step), "the first argument of fit", "a function (state, *args) -> (state, info)", step, "rws.step"),
        (callback is None or callable(callback), "option 'callback'", "a function (state, infos)", callback, "None"),
        (evaluate is None or callable(evaluate), "option 'evaluate'", "a function (state) -> info", evaluate, EVALUATE),
    ]
    for is_right, what, expected, value, hint in kinds:
        if not is_right:
            found = type(value).__name__
            fail(TypeError, f"{what} has the wrong type", expected=expected, found=found, hint=f"pass {hint}")
    if has_arguments and isinstance(evaluate, Dispatched | NotJittable):
        what, found = "option 'evaluate' is called with the state alone", "rws.evaluate, which takes data as well"
        fail(TypeError, what, expected="a function (state) -> info", found=found, hint=f"pass {EVALUATE}")
    check_batches(batches)
    check_state(state, RWSState, "the second argument of fit")
    if is_traced(state):
        what, hint = "fit is called inside of jit, scan or vmap", "use jax.lax.scan over rws.step there"
        fail(TypeError, what, expected="a call from Python", found="a traced state", hint=hint)
    hint = "fit(rws.step, state, 1000, *args)"
    check_int(num_steps, "num_steps", 1, expected="an int >= 1, how many steps to take", hint=hint)
    check_int(max_nonfinite_steps, "max_nonfinite_steps", 0, expected="an int >= 0", hint="leave it out")
    check_flag(progress_bar, "progress_bar")
    if steps_per_block is not None:
        check_int(steps_per_block, "steps_per_block", 1, expected="an int >= 1", hint="leave it out")
    if evaluate_every is not None:
        hint = "leave it out, which evaluates after each block"
        check_int(evaluate_every, "evaluate_every", 1, expected="an int >= 1, a number of steps", hint=hint)
        if evaluate is None:
            what, found = "option 'evaluate_every' says when, and not what to evaluate", "evaluate=None"
            fail(ValueError, what, expected="option 'evaluate' as well", found=found, hint=f"pass evaluate={EVALUATE}")
        if evaluate_every > num_steps:
            what, hint = "option 'evaluate_every' is too large, and nothing would be evaluated", f"{hint}, or pass less"
            found = f"{evaluate_every}, in a fit of {num_steps}"
            fail(ValueError, what, expected="num_steps or fewer", found=found, hint=hint)


def check_info(
    info: Any,
    what: str = "the first argument of fit",
    signature: str = "(state, *args) -> (RWSState, RWSInfo)",
    instead: str = "rws.step, or a function that returns what it returns",
) -> None:
    """Check that a step, or an evaluation, returns an info."""
    if not isinstance(info, RWSInfo):
        problem, expected = f"{what} does not return an info", f"a function {signature}"
        fail(TypeError, problem, expected=expected, found=describe(info), hint=f"pass {instead}")
