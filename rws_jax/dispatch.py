"""One function of two kinds: compiled as a whole or, if its programs turn out to branch in Python, by paths."""

from collections.abc import Callable
from typing import Any

from rws_jax.branching import Branching
from rws_jax.paths import SteersError


class Dispatched:
    """Calls `at_once`, which is compiled, until branching sites are met, and `by_paths` from then on."""

    def __init__(self, at_once: Any, by_paths: Callable, branching: Branching) -> None:
        self._at_once, self._by_paths, self._branching = at_once, by_paths, branching
        self.lower = at_once.lower  # as functions have that jax.jit returns

    @property
    def jittable(self) -> bool:
        """Whether it can be compiled as a part of something larger."""
        return not self._branching.is_met

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if not self._branching.is_met:
            try:
                return self._at_once(*args, **kwargs)
            except SteersError:
                self._branching.is_met = True
        return self._by_paths(*args, **kwargs)
