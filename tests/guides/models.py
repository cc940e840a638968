"""Models without parameters whose log evidence is known, to try guides on; by enumeration or in closed form.

`MODELS` has them all. Each is a `Problem`: its programs, how to draw data from it, and what is exact.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm


class Problem(NamedTuple):
    """A model with its exact log evidence."""

    model: Callable[..., None]
    by_hand: Callable[..., None] | None  # a guide without parameters that is the posterior, where it has a simple form
    zeros: tuple[np.ndarray, ...]  # arguments of the shapes and types of data; a row for each datum
    log_evidence: Callable[..., jax.Array]  # of each datum, of the same arguments
    sites: tuple[str, ...]  # observed sites, which are the names of the arguments too
    data_axes: int | None = None

    def draw(self, rng_key: jax.Array, num_data: int) -> tuple[np.ndarray, ...]:
        """Data from the model."""
        zeros = tuple(np.zeros((num_data, *x.shape[1:]), x.dtype) for x in self.zeros)
        if self.data_axes is None:
            return self._draw_once(rng_key, zeros)
        keys = jax.random.split(rng_key, num_data)
        rows = [self._draw_once(key, row) for key, *row in zip(keys, *zeros, strict=True)]
        return tuple(np.stack(values) for values in zip(*rows, strict=True))

    def _draw_once(self, rng_key: jax.Array, zeros: Any) -> tuple[np.ndarray, ...]:
        model = numpyro.handlers.seed(numpyro.handlers.uncondition(self.model), rng_key)
        trace = numpyro.handlers.trace(model).get_trace(*zeros)
        return tuple(np.asarray(trace[name]["value"], x.dtype) for name, x in zip(self.sites, zeros, strict=True))


def as_guide(model: Callable[..., None]) -> Callable[..., None]:
    """The model's prior as a guide: the model itself, its observed sites hidden."""
    return numpyro.handlers.block(model, hide_fn=lambda site: site.get("is_observed", False))


# Conjugate: two latents that are independent until their sum is observed


def conjugate_model(x, y):
    """x is the sum of both latents with noise of scale 0.3, y the second one with noise of scale 1."""
    with numpyro.plate("data", len(x)):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(a + b, 0.3), obs=x)
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)


def conjugate_posterior(x, y):
    """Of b given the data, and of a given b. Given b alone, x has variance 1.09."""
    with numpyro.plate("data", len(x)):
        precision = 1.0 + 1.0 + 1 / 1.09
        b = numpyro.sample("b", dist.Normal((y + x / 1.09) / precision, precision**-0.5))
        precision = 1.0 + 1 / 0.09
        numpyro.sample("a", dist.Normal((x - b) / 0.09 / precision, precision**-0.5))


def conjugate_log_evidence(x, y):
    """Of y, of variance 2, and of x given y: of mean y / 2 and variance 2.09 - 1 / 2."""
    return norm.logpdf(y, 0.0, 2.0**0.5) + norm.logpdf(x, y / 2, 1.59**0.5)


# Noisy-or: causes that explain each other away

NUM_CAUSES, NUM_EFFECTS = 8, 6
STATES = np.array(list(itertools.product([0, 1], repeat=NUM_CAUSES)))  # of all causes
CAUSE_PROBS = np.linspace(0.1, 0.4, NUM_CAUSES)
LEAK = 0.01  # probability of an effect without any cause
_RNG = np.random.default_rng(0)
# Probability that a cause, by itself, brings about an effect; half of them, about, cannot.
_CANNOT = _RNG.random((NUM_CAUSES, NUM_EFFECTS)) < 0.5
STRENGTHS = np.where(_CANNOT, 0.0, _RNG.uniform(0.5, 0.95, (NUM_CAUSES, NUM_EFFECTS)))


def noisy_or_model(x):
    """Eight Bernoulli sites `cause_0` to `cause_7`, and one for the six effects of each datum."""
    with numpyro.plate("data", len(x)):
        log_none = jnp.log1p(-LEAK)
        for i in range(NUM_CAUSES):
            cause = numpyro.sample(f"cause_{i}", dist.Bernoulli(CAUSE_PROBS[i]))
            log_none = log_none + cause[:, None] * jnp.log1p(-STRENGTHS[i])[None]
        numpyro.sample("x", dist.Bernoulli(-jnp.expm1(log_none)).to_event(1), obs=x)


def noisy_or_posterior(x):
    """Each cause given the effects and the causes before it."""
    log_joint = noisy_or_log_joint(x)
    with numpyro.plate("data", len(x)):
        for i in range(NUM_CAUSES):
            is_on = (STATES[:, i] == 1)[None]
            log_off, log_on = jnp.where(is_on, -jnp.inf, log_joint), jnp.where(is_on, log_joint, -jnp.inf)
            logits = logsumexp(log_on, axis=1) - logsumexp(log_off, axis=1)
            cause = numpyro.sample(f"cause_{i}", dist.Bernoulli(logits=logits))
            log_joint = jnp.where(STATES[None, :, i] == cause[:, None], log_joint, -jnp.inf)


def noisy_or_log_joint(x):
    """Log p(causes, x), shape ``(data, states)``."""
    log_prior = jnp.where(STATES == 1, jnp.log(CAUSE_PROBS)[None], jnp.log1p(-CAUSE_PROBS)[None]).sum(axis=1)
    none = (1 - LEAK) * jnp.prod(jnp.where(STATES[..., None] == 1, 1 - STRENGTHS[None], 1.0), axis=1)
    p = jnp.where(x[:, None] == 1, 1 - none[None], none[None])
    return log_prior[None] + jnp.log(p).sum(axis=-1)


def noisy_or_log_evidence(x):
    """The sum over all 256 states."""
    return logsumexp(noisy_or_log_joint(x), axis=1)


# A latent whose square is observed, so that its posterior has two modes


def square_model(x):
    """x is the square of z, with noise of scale 0.3."""
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z**2, 0.3), obs=x)


def square_log_evidence(x):
    """The trapezoidal rule on a grid, whose step is a fraction of the narrowest mode."""
    z = jnp.linspace(-8.0, 8.0, 8001)
    log_joint = norm.logpdf(z)[None] + norm.logpdf(x[:, None], (z**2)[None], 0.3)
    return logsumexp(log_joint, axis=1) + jnp.log(0.002)


# A sensor that works or does not, by a Python `if`, for one datum

BRANCHES = {"branching": True}


def sensor_model(x):
    """A sensor that works, with probability 0.7, reports a location with small noise; another one anything."""
    if numpyro.sample("works", dist.Bernoulli(0.7), infer=BRANCHES):
        loc = numpyro.sample("loc", dist.Normal(0.0, 2.0))
        numpyro.sample("x", dist.Normal(loc, 0.5), obs=x)
    else:
        numpyro.sample("x", dist.Normal(0.0, 10.0), obs=x)


def sensor_posterior(x):
    """Whether it works, and if so the location."""
    log_odds = jnp.log(0.7) + norm.logpdf(x, 0.0, 4.25**0.5) - jnp.log(0.3) - norm.logpdf(x, 0.0, 10.0)
    if numpyro.sample("works", dist.Bernoulli(logits=log_odds), infer=BRANCHES):
        numpyro.sample("loc", dist.Normal(4.0 * x / 4.25, 4.25**-0.5))


def sensor_log_evidence(x):
    """Both branches are normal."""
    works, broken = jnp.log(0.7) + norm.logpdf(x, 0.0, 4.25**0.5), jnp.log(0.3) + norm.logpdf(x, 0.0, 10.0)
    return jnp.logaddexp(works, broken)


_NUMBER = np.zeros(1, np.float32)
_EFFECTS = np.zeros((1, NUM_EFFECTS), np.int32)
MODELS = {
    "conjugate": Problem(conjugate_model, conjugate_posterior, (_NUMBER, _NUMBER), conjugate_log_evidence, ("x", "y")),
    "noisy_or": Problem(noisy_or_model, noisy_or_posterior, (_EFFECTS,), noisy_or_log_evidence, ("x",)),
    "square": Problem(square_model, None, (_NUMBER,), square_log_evidence, ("x",)),
    "sensor": Problem(sensor_model, sensor_posterior, (_NUMBER,), sensor_log_evidence, ("x",), data_axes=0),
}
