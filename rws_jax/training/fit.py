"""`fit`: many steps, a progress bar, and nothing lost when they stop early."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import numpy as np
from tqdm.auto import tqdm

from rws_jax.core.errors import fail
from rws_jax.training import blocks, fit_checks
from rws_jax.training.held_out import HeldOut
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
    evaluate: Callable[[RWSState], RWSInfo] | None = None,
    evaluate_every: int | None = None,
    max_nonfinite_steps: int = 100,
    progress_bar: bool = True,
    **kwargs: Any,
) -> tuple[RWSState, RWSInfo]:
    """Take many steps, in blocks.

    Between blocks the bar moves on, and `callback` may save the state or stop. Ctrl-C returns what the last whole block
    has reached; an error in a callback or an iterable is passed on.

    Fewer than 5,000 steps are dispatched one by one, and so are minibatches: this compiles nothing that `step` has
    compiled before. Longer fits compile a block as a whole, which then runs on the device from end to end. What has
    been compiled of a `step` is kept for later fits: as by `jax.jit`, a global variable of model, guide or `step` that
    has changed since is not seen.

    Args:
      step: ``rws.step``, or any function like it: under `jax.vmap` over seeds, with arguments bound.
      state: to start from; of ``rws.init``, or restored.
      num_steps: how many steps to take.
      *args: arguments of model and guide, the same in every step.
      batches: iterable of what differs from step to step, as `minibatches` makes it; its items come before `args`. A
        plain tuple or list has several arguments; an array, a dict or a NamedTuple is one. Steps end with the iterable.
      steps_per_block: steps from one callback to the next; default 100, and in fits of fewer than 5,000 steps a
        hundredth of them.
      callback: ``(state, infos)``, called after each block with the infos of that block; what is true ends the loop.
      evaluate: a function of the state, ``lambda state: rws.evaluate(state, x_test)`` say, called between blocks. Its
        results are `held_out` of the infos, those of the callback among them, and the bar shows the model's held-out
        loss. This is a sum over held-out data, as that of training is over training data: to compare them, divide each
        by its number of data.
      evaluate_every: steps from one evaluation to the next, `num_steps` at most, each of which ends a block; default
        after every block.
      max_nonfinite_steps: how many steps in a row may leave the parameters as they were; those of all seeds, if there
        are several.
      progress_bar: whether to show one, with means over the last block.
      **kwargs: keyword arguments of model and guide.

    Returns:
      The final state, and the infos of all steps, stacked: shapes ``(steps,)``. Their `held_out` has the infos of all
      evaluations, shapes ``(evaluations,)``, and as its `step` after how many steps of the state each was made; it is
      None if there were none.

    Raises:
      NonFiniteError: after more than `max_nonfinite_steps` steps in a row that were not finite, with what would have
        been returned as its attributes `state` and `infos`.
      TypeError: for an argument of the wrong kind, data in place of an iterable of batches among them.
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
    options = batches, steps_per_block, callback, max_nonfinite_steps, progress_bar, evaluate, evaluate_every
    has_arguments = bool(args or kwargs or batches is not None)
    fit_checks.check_call(step, state, num_steps, *options, has_arguments=has_arguments)
    is_long = num_steps >= blocks.LOOP_FROM
    size = steps_per_block or (blocks.BLOCK if is_long else max(1, num_steps // 100))
    infos_of_blocks: list[RWSInfo] = []
    num_done = num_nonfinite = 0  # the latter without interruption, up to the last step
    with tqdm(total=num_steps, disable=not progress_bar, bar_format=_BAR) as bar:
        compiling = partial(_says, bar, "compiling")
        held_out = HeldOut(evaluate, evaluate_every, compiling)
        size = held_out.block_size(size, 0)
        steps = blocks.Steps(step, batches, size if is_long and size > 1 else None, compiling)
        try:
            while num_done < num_steps:
                num = held_out.block_size(min(size, num_steps - num_done), num_done)
                new_state, infos = steps.take(state, num, args, kwargs)
                if infos is None and infos_of_blocks:
                    break  # no batch is left
                if infos is None:
                    _fail_empty()
                state = new_state
                infos_of_blocks.append(infos)
                num_done += len(infos.finite)
                infos = infos_of_blocks[-1] = infos._replace(held_out=held_out(state, num_done))
                means = _means(infos, held_out.latest, blocks.attribute_of(step, "max_ess", None))
                bar.set_postfix_str(means, refresh=False)
                bar.update(len(infos.finite))
                for row, finite in enumerate(infos.finite):
                    num_nonfinite = 0 if finite.any() else num_nonfinite + 1  # of several seeds, one may fare well
                    if num_nonfinite > max_nonfinite_steps:
                        _fail_nonfinite(num_nonfinite, row, state, infos, blocks.joined(infos_of_blocks))
                if callback is not None and callback(state, infos):
                    break
        except KeyboardInterrupt:
            bar.set_description("interrupted")
    return state, blocks.joined(infos_of_blocks)


_BAR = "{desc}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # what is useful fits into 80 columns


@contextmanager
def _says(bar: tqdm, text: str) -> Iterator[None]:
    bar.set_description(text)
    try:
        yield
    finally:
        bar.set_description()


def _means(infos: RWSInfo, held_out: RWSInfo | None, max_ess: int | None) -> str:
    """What the bar shows of a block: the first is what the last would be cut for."""
    shown = {"ESS": infos.ess_mean, "theta loss": infos.wake_theta_loss, "phi loss": infos.phi_loss}
    if held_out is not None and infos.wake_theta_loss is not None:
        shown = shown | {"phi loss": None, "held-out": held_out.wake_theta_loss}
    elif held_out is not None:
        shown["held-out"] = held_out.phi_loss
    means = {name: f"{np.mean(values):.4g}" for name, values in shown.items() if values is not None}
    if "ESS" in means and max_ess is not None:
        means["ESS"] += f" of {max_ess}"
    return ", ".join(f"{name}={mean}" for name, mean in means.items())


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
