"""`fit`: many steps, a progress bar, and nothing lost when they stop early."""

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from tqdm.auto import tqdm

from rws_jax.checks.arguments import check_flag, check_int, check_state
from rws_jax.core.errors import describe, fail
from rws_jax.execution.branching.errors import BranchingSiteError
from rws_jax.programs.program import Arguments
from rws_jax.training.dispatch import jitted
from rws_jax.training.state import NonFiniteError, RWSInfo, RWSState


def fit(
    step: Callable[..., tuple[RWSState, RWSInfo]],
    state: RWSState,
    num_steps: int,
    /,
    *args: Any,
    batches: Iterable | None = None,
    steps_per_block: int | None = None,
    callback: Callable[[RWSState, RWSInfo], Any] | None = None,
    max_nonfinite_steps: int = 100,
    progress_bar: bool = True,
    **kwargs: Any,
) -> tuple[RWSState, RWSInfo]:
    """Take many steps in compiled blocks.

    A block runs on the device from end to end; between blocks the bar moves on, and `callback` may save the state or
    stop. Ctrl-C returns what the last whole block has reached; an error in a callback or an iterable is passed on.

    Args:
      step: ``rws.step``, or any function like it: under `jax.vmap` over seeds, with arguments bound.
      state: to start from; of ``rws.init``, or restored.
      num_steps: how many steps to take.
      *args: arguments of model and guide, the same in every step.
      batches: iterable of what differs from step to step, to come before `args`: tuples or lists of arguments, or
        single ones. Steps are then dispatched one by one, and end with the iterable.
      steps_per_block: steps from one callback to the next; default a hundredth of `num_steps`, and at most 100.
      callback: ``(state, infos)``, called after each block with the infos of that block; what is true ends the loop.
      max_nonfinite_steps: how many steps in a row may leave the parameters as they were; those of all seeds, if there
        are several.
      progress_bar: whether to show one, with means over the last block.
      **kwargs: keyword arguments of model and guide.

    Returns:
      The final state, and the infos of all steps, stacked: shapes ``(steps,)``.

    Raises:
      NonFiniteError: after more than `max_nonfinite_steps` steps in a row that were not finite, with what would have
        been returned as its attributes `state` and `infos`.
      TypeError: for an argument of the wrong kind.
      ValueError: for a number out of range.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax, rws_jax
      >>> def model(x):
      ...     z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
      ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x):
      ...     numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0) + x / 2, 1.0))
      >>> rws = rws_jax.make_step(model, guide, theta_optimizer=optax.adam(0.1), num_particles=10)
      >>> state, infos = rws_jax.fit(rws.step, rws.init(jax.random.key(0), 3.0), 500, 3.0, progress_bar=False)
      >>> print(f"{state.theta['m']:.0f}", infos.wake_theta_loss.shape)
      3 (500,)
    """
    block = _check(step, state, num_steps, batches, steps_per_block, callback, max_nonfinite_steps, progress_bar)
    jittable = _is_jittable(step)
    if batches is None and jittable:
        run = partial(_compiled, _block_of(step), max(block, _BLOCK))
    else:
        each = jitted(step) if jittable and not hasattr(step, "lower") else step
        run = partial(_one_by_one, each, itertools.repeat(()) if batches is None else iter(batches))
    blocks: list[RWSInfo] = []
    num_nonfinite = 0  # without interruption, up to the last step
    with tqdm(total=num_steps, disable=not progress_bar) as bar:
        try:
            for start in range(0, num_steps, block):
                size = min(block, num_steps - start)
                try:
                    new_state, infos = run(state, size, args, kwargs)
                except BranchingSiteError:  # whether programs branch is known only once they run
                    run = partial(_one_by_one, step, itertools.repeat(()))
                    new_state, infos = run(state, size, args, kwargs)
                if infos is None and blocks:
                    break  # no batch is left
                if infos is None:
                    _fail_empty()
                state = new_state
                blocks.append(infos)
                bar.update(len(infos.finite))
                bar.set_postfix(_means(infos), refresh=False)
                for row, finite in enumerate(infos.finite):
                    num_nonfinite = 0 if finite.any() else num_nonfinite + 1  # of several seeds, one may fare well
                    if num_nonfinite > max_nonfinite_steps:
                        _fail_nonfinite(num_nonfinite, row, state, infos, _joined(blocks))
                if callback is not None and callback(state, infos):
                    break
        except KeyboardInterrupt:
            bar.set_description("interrupted")
    return state, _joined(blocks)


_BLOCK = 100  # steps; on CPU, where infos are many, a loop over 10,000 takes twice as long for each


def _is_jittable(step: Any) -> bool:
    while isinstance(step, partial):
        step = step.func
    return getattr(step, "jittable", True)


def _compiled(block: Callable, size: int, state: Any, num_steps: int, args: tuple, kwargs: dict) -> tuple[Any, Any]:
    state, infos = block(size, state, num_steps, Arguments.of(args, kwargs))
    return state, jax.tree.map(lambda x: x[:num_steps], jax.device_get(infos))


def _block_of(step: Callable) -> Callable:
    """Blocks of this step, which later fits find, as long as there is `step`."""
    try:
        if step not in _BLOCKS:
            _BLOCKS[step] = _block(weakref.ref(step))  # else what is kept would keep its own key
        return _BLOCKS[step]
    except TypeError:  # it has no hash, or no weak references
        return _block(lambda: step)


def _block(step_of: Callable) -> Callable:
    """At most `size` steps, compiled once: a block may have fewer."""

    @partial(jax.jit, static_argnums=0)
    def block(size: int, state: Any, num_steps: jax.Array, arguments: Arguments) -> tuple:
        step, (args, kwargs) = step_of(), arguments.plain
        info = jax.eval_shape(lambda: step(state, *args, **kwargs))[1]
        _check_info(info)
        infos = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), info)

        def body(index: jax.Array, carry: tuple) -> tuple:
            state, infos = carry
            state, info = step(state, *args, **kwargs)
            return state, jax.tree.map(lambda rows, row: rows.at[index].set(row), infos, info)

        return lax.fori_loop(0, num_steps, body, (state, infos))

    return block


_BLOCKS: weakref.WeakKeyDictionary[Callable, Callable] = weakref.WeakKeyDictionary()


def _one_by_one(
    step: Callable, batches: Iterator, state: Any, num_steps: int, args: tuple, kwargs: dict
) -> tuple[Any, Any]:
    infos = []
    for batch in itertools.islice(batches, num_steps):
        state, info = step(state, *(batch if isinstance(batch, tuple | list) else (batch,)), *args, **kwargs)
        _check_info(info)
        infos.append(info)
    return state, _map(np.stack, jax.device_get(infos)) if infos else None


def _joined(blocks: list[RWSInfo]) -> RWSInfo:
    if not blocks:
        return RWSInfo.of_no_steps()
    return _map(lambda rows: jnp.asarray(np.concatenate(rows)), blocks)


def _map(join: Callable, infos: list[RWSInfo]) -> RWSInfo:
    return jax.tree.map(lambda *leaves: join(leaves), *infos)


def _means(infos: RWSInfo) -> dict[str, str]:
    shown = {"theta loss": infos.wake_theta_loss, "phi loss": infos.phi_loss, "ESS": infos.ess_mean}
    return {name: f"{np.mean(values):.4g}" for name, values in shown.items() if values is not None}


def _check(
    step: Any,
    state: Any,
    num_steps: Any,
    batches: Any,
    block: Any,
    callback: Any,
    max_nonfinite_steps: Any,
    progress_bar: Any,
) -> int:
    """Of what kind the arguments are; returns the size of blocks."""
    kinds = [
        (callable(step), "the first argument of fit", "a function (state, *args) -> (state, info)", step, "rws.step"),
        (callback is None or callable(callback), "option 'callback'", "a function (state, infos)", callback, "None"),
        (batches is None or isinstance(batches, Iterable), "option 'batches'", "an iterable", batches, "[(x, y), ...]"),
    ]
    for is_right, what, expected, value, hint in kinds:
        if not is_right:
            found = type(value).__name__
            fail(TypeError, f"{what} has the wrong type", expected=expected, found=found, hint=f"pass {hint}")
    check_state(state, RWSState, "the second argument of fit")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(state)):
        what, hint = "fit is called inside of jit, scan or vmap", "use jax.lax.scan over rws.step there"
        fail(TypeError, what, expected="a call from Python", found="a traced state", hint=hint)
    hint = "fit(rws.step, state, 1000, *args)"
    check_int(num_steps, "num_steps", 1, expected="an int >= 1, how many steps to take", hint=hint)
    check_int(max_nonfinite_steps, "max_nonfinite_steps", 0, expected="an int >= 0", hint="leave it out")
    check_flag(progress_bar, "progress_bar")
    if block is None:
        return max(1, min(num_steps // 100, _BLOCK))
    check_int(block, "steps_per_block", 1, expected="an int >= 1", hint="leave it out")
    return int(block)


def _check_info(info: Any) -> None:
    if not isinstance(info, RWSInfo):
        fail(
            TypeError,
            "the first argument of fit does not return an info",
            expected="a function (state, *args) -> (RWSState, RWSInfo)",
            found=describe(info),
            hint="pass rws.step, or a function that returns what it returns",
        )


def _fail_empty() -> NoReturn:
    fail(
        ValueError,
        "option 'batches' has no batch",
        expected="at least one",
        found="an iterable that ends at once",
        hint="an iterator can be used once only; make a new one for each fit",
    )


def _fail_nonfinite(number: int, last: int, state: RWSState, block: RWSInfo, infos: RWSInfo) -> NoReturn:
    shown = ("wake_theta_loss", "phi_loss", "theta_grad_norm", "phi_grad_norm", "num_dead_units")
    metrics = {name: getattr(block, name) for name in shown}
    fail(
        partial(NonFiniteError, state=state, infos=infos),
        f"{number} steps in a row were not finite, and left the parameters as they were",
        expected="finite losses and gradients, and particles of weight above zero",
        found="in the last one " + ", ".join(f"{name} {x[last]}" for name, x in metrics.items() if x is not None),
        hint="this error has the state and all infos as attributes; a smaller learning rate, optax.clip_by_global_norm"
        " or a guide that starts closer to the posterior may help",
    )
