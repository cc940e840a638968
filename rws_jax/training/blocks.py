"""How `fit` takes its steps: many in one compiled loop, or one after the other; their infos come to the host, stacked.

Steps one by one need nothing that `step` has not compiled already. A loop is one more program to compile.
"""

import itertools
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rws_jax.core.trees import copied
from rws_jax.execution.all_paths import paths_if_cheaper
from rws_jax.execution.branching.errors import BranchingSiteError, warn_of_path
from rws_jax.programs.program import Arguments
from rws_jax.training.batches import arguments_of
from rws_jax.training.fit_checks import check_info
from rws_jax.training.state import RWSInfo

BLOCK = 100  # steps; on CPU, where infos are many, a loop over 10,000 takes twice as long for each
# Steps of a fit. To compile a loop takes as long as it saves in some 10,000 steps on two CPU cores, if `step` has been
# compiled before; if it has not, the loop costs nothing more.
LOOP_FROM = 5000


class Steps:
    """Takes the steps of one fit."""

    def __init__(
        self,
        step: Callable,
        batches: Iterable | None,
        loop_size: int | None,
        compiling: Callable[[], AbstractContextManager],
    ) -> None:
        """Prepare to call `step`.

        Args:
          step: as `fit` has it.
          batches: what differs from step to step.
          loop_size: so many steps, asked for at once, run in a loop; None for no loops.
          compiling: what first calls run in, which may have to compile.
        """
        jittable = attribute_of(step, "jittable", True)
        self._compiled = _compiled_of(step) if jittable else None
        # Functions that wrap a step may show its attributes as theirs.
        is_jitted = hasattr(step, "lower") and not isinstance(step, FunctionType)
        self._in_python = step
        self._step = step if self._compiled is None or is_jitted else self._compiled.once
        # What a user has jitted may give the memory of a state away, which callbacks and Ctrl-C still need.
        self._may_donate = is_jitted and not hasattr(step, "jittable")
        self._batches = None if batches is None else iter(batches)
        self._loop_size = loop_size if jittable and batches is None else None
        self._first = {"loop": compiling, "step": compiling} if jittable else {}

    def take(self, state: Any, num_steps: int, args: tuple, kwargs: dict) -> tuple[Any, RWSInfo | None]:
        """The state after so many steps, or fewer if batches end, and all infos; None if there was no batch."""
        if num_steps == self._loop_size and self._compiled is not None:
            try:
                with self._first.pop("loop", nullcontext)(), paths_if_cheaper():
                    state, infos = self._compiled.loop(num_steps, state, args, kwargs)
                return state, jax.device_get(infos)
            except BranchingSiteError as error:  # whether programs can be unrolled is known only once they run
                warn_of_path(error)
                self._loop_size = None
        batches = itertools.repeat(()) if self._batches is None else self._batches
        state = copied(state) if self._may_donate else state
        blocks = []
        for size in [BLOCK] * (num_steps // BLOCK) + [num_steps % BLOCK]:
            infos = []
            for batch in itertools.islice(batches, size):
                with self._first.pop("step", nullcontext)():
                    state, info = self._one(state, *arguments_of(batch), *args, **kwargs)
                check_info(info)
                infos.append(info)
            blocks += [_map(np.stack, jax.device_get(infos))] if infos else []
        return state, _map(np.concatenate, blocks) if blocks else None

    def _one(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if self._step is self._in_python:
            return self._step(*args, **kwargs)
        try:
            with paths_if_cheaper():
                return self._step(*args, **kwargs)
        except BranchingSiteError as error:
            warn_of_path(error)
            self._step = self._in_python
            return self._step(*args, **kwargs)


def joined(blocks: list[RWSInfo]) -> RWSInfo:
    """Infos of several blocks as those of one."""
    if not blocks:
        return RWSInfo.of_no_steps()
    held_out = [block.held_out for block in blocks if block.held_out is not None]
    infos = _map(np.concatenate, [block._replace(held_out=None) for block in blocks])
    infos = infos._replace(held_out=_map(np.concatenate, held_out) if held_out else None)
    return jax.tree.map(jnp.asarray, infos)


def attribute_of(step: Any, name: str, default: Any) -> Any:
    """That of a step, or of what is inside of it if it is made by `functools.partial`, `jax.jit` or `jax.vmap`."""
    while not hasattr(step, name):
        inner = step.func if isinstance(step, partial) else getattr(step, "__wrapped__", None)
        if inner is None:
            return default
        step = inner
    return getattr(step, name)


class _Compiled:
    """What has been compiled of a step; it does not keep the step alive."""

    def __init__(self, step_of: Callable[[], Any]) -> None:
        @partial(jax.jit, static_argnums=0)
        def block(size: int, state: Any, arguments: Arguments) -> tuple:
            step, (args, kwargs) = step_of(), arguments.plain

            def body(state: Any, _: None) -> tuple:
                state, info = step(state, *args, **kwargs)
                check_info(info)
                return state, info

            # The number of iterations is static: one that XLA knows only as it runs is asked of the device each time.
            return lax.scan(body, state, length=size)

        @jax.jit
        def once(state: Any, arguments: Arguments) -> tuple:
            args, kwargs = arguments.plain
            return step_of()(state, *args, **kwargs)

        self.block = block
        # What is static among the arguments passes around what is compiled.
        self.loop = lambda size, state, args, kwargs: block(size, state, Arguments.of(args, kwargs))
        self.once = lambda state, *args, **kwargs: once(state, Arguments.of(args, kwargs))


def _compiled_of(step: Callable) -> _Compiled:
    """Of this step, which later fits find, as long as there is `step`."""
    try:
        if step not in _COMPILED:
            _COMPILED[step] = _Compiled(weakref.ref(step))  # else what is kept would keep its own key
        return _COMPILED[step]
    except TypeError:  # it has no hash, or no weak references
        return _Compiled(lambda: step)


_COMPILED: weakref.WeakKeyDictionary[Callable, _Compiled] = weakref.WeakKeyDictionary()


def _map(join: Callable, infos: list[RWSInfo]) -> RWSInfo:
    return jax.tree.map(lambda *leaves: join(leaves), *infos)
