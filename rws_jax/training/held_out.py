"""Evaluations on held-out data between the blocks of `fit`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

from rws_jax.training.fit_checks import EVALUATE, check_info
from rws_jax.training.state import RWSInfo, RWSState


class HeldOut:
    """Evaluates the states of one fit."""

    def __init__(
        self,
        evaluate: Callable[[RWSState], RWSInfo] | None,
        every: int | None,
        compiling: Callable[[], AbstractContextManager],
    ) -> None:
        """Prepare to call `evaluate`.

        Args:
          evaluate: as `fit` has it.
          every: the number of steps from one evaluation to the next; None for one after each block.
          compiling: what the first call runs in, which may have to compile.
        """
        self._evaluate, self._every, self._first = evaluate, every, [compiling]
        self.latest: RWSInfo | None = None

    def block_size(self, size: int, num_done: int) -> int:
        """The number of steps to take next, `size` or fewer: an evaluation ends a block."""
        return size if self._every is None else min(size, self._every - num_done % self._every)

    def __call__(self, state: RWSState, num_done: int) -> RWSInfo | None:
        """The info after so many steps, stacked to shape ``(1,)``; None if there is no evaluation now."""
        if self._evaluate is None or (self._every is not None and num_done % self._every):
            return None
        with self._first.pop()() if self._first else nullcontext():
            info: Any = self._evaluate(state)
        check_info(info, "option 'evaluate'", "(state) -> RWSInfo", EVALUATE)
        self.latest = jax.tree.map(lambda leaf: np.asarray(leaf)[None], jax.device_get(info))
        return self.latest
