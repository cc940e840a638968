"""Do all contenders of `speed.py` compute the same? Bounds and gradients in expectation, for one datum."""

import jax
import numpy as np
from contenders import CONTENDERS
from jax import lax
from jax.flatten_util import ravel_pytree

NUM_REPEATS = 2000


def check(title, names, setting):
    """Print how far means are from those of rws_jax."""
    print(f"\n{title}: distances from rws_jax in standard errors of {NUM_REPEATS} repeats")
    print(f"{'':<14}{'bound':>10}{'model':>10}{'guide':>10}")
    setting = setting._replace(train=False)
    reference = samples(CONTENDERS["rws_jax"](setting))
    for name in names:
        if name != "rws_jax":
            pairs = zip(reference, samples(CONTENDERS[name](setting)), strict=False)
            print(f"{name:<14}" + "".join(f"{distance(*pair):10.1f}" for pair in pairs), flush=True)


def samples(contender):
    """Bounds, and gradients of model and guide if they can be had; shape ``(repeats, coordinates)``."""
    state, step, x, bound, gradients = contender
    if not hasattr(step, "lower"):
        return (np.array([[bound(step(state, x)[1])] for _ in range(NUM_REPEATS)]),)

    def body(state, _):
        state, logs = step(state, x)
        return state, (bound(logs)[None], *(ravel_pytree(part)[0] for part in gradients(state)))

    return jax.jit(lambda state: lax.scan(body, state, length=NUM_REPEATS)[1])(state)


def distance(a, b):
    """Root mean square over coordinates, in standard errors; near one if the expectations are equal."""
    variance = (np.var(a, axis=0) + np.var(b, axis=0)) / NUM_REPEATS
    square = (np.mean(a, axis=0) - np.mean(b, axis=0)) ** 2
    seen = variance > 0.0
    return np.sqrt(np.mean(square[seen] / variance[seen]))
