r"""Log densities in forms that are exact where NumPyro's are not.

The density of logits, :math:`y l - \log(1 + e^l)`, is written there as a clip and an absolute value, whose derivatives
at :math:`l = 0` are not those of the function: 0 and 1 in place of -1/2 and 1/2. Guides start there. The density of an
inverse Gamma distribution is that of the inverse, whose Jacobian overflows from 1e19 on.
"""

from copy import copy
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln
from jax.typing import ArrayLike
from numpyro.distributions import BernoulliLogits, BinomialLogits, Distribution, InverseGamma


class _SmoothBernoulli(BernoulliLogits):
    def log_prob(self, value: ArrayLike) -> jax.Array:
        return _log_prob(jnp.asarray(self.logits), jnp.asarray(value), 1)


class _SmoothBinomial(BinomialLogits):
    def log_prob(self, value: ArrayLike) -> jax.Array:
        total, value = jnp.asarray(self.total_count), jnp.asarray(value)
        log_choices = gammaln(total + 1.0) - gammaln(value + 1.0) - gammaln(total - value + 1.0)
        return log_choices + _log_prob(jnp.asarray(self.logits), value, total)


class _DirectInverseGamma(InverseGamma):
    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> jax.Array:
        constant = self.concentration * jnp.log(self.rate) - gammaln(self.concentration)
        return constant - (self.concentration + 1.0) * jnp.log(value) - self.rate / jnp.asarray(value)


_EXACT = {BernoulliLogits: _SmoothBernoulli, BinomialLogits: _SmoothBinomial, InverseGamma: _DirectInverseGamma}


def exact(fn: Distribution) -> Distribution:
    """The same distribution, and those that it is made of, with log densities in exact form."""
    if type(fn) in _EXACT:
        other = copy(fn)
        other.__class__ = _EXACT[type(fn)]
        return other
    parts = {name: _exact_parts(part) for name, part in vars(fn).items() if _has_parts(part)}
    if all(part is vars(fn)[name] for name, part in parts.items()):
        return fn
    other = copy(fn)
    vars(other).update(parts)
    return other


def _has_parts(value: Any) -> bool:
    return isinstance(value, Distribution) or (isinstance(value, list | tuple) and any(map(_has_parts, value)))


def _exact_parts(value: Any) -> Any:
    """Components of a mixture come in a list."""
    if isinstance(value, Distribution):
        return exact(value)
    return [exact(part) if isinstance(part, Distribution) else part for part in value]


def _log_prob(logits: jax.Array, value: jax.Array, total: jax.Array | int) -> jax.Array:
    """Of `value` successes, in any order; where logits are infinite all trials come out alike."""
    logits = jnp.asarray(logits, jnp.result_type(logits, float))  # they may be whole numbers
    infinite = jnp.isinf(logits)
    safe = lax.select(infinite, jnp.zeros_like(logits), logits)
    certain = jnp.where(value == jnp.where(logits > 0, total, 0), 0.0, -jnp.inf)
    return jnp.where(infinite, certain, value * safe - total * _softplus(safe))


@jax.custom_jvp
def _softplus(x: jax.Array) -> jax.Array:
    """``log(1 + exp(x))`` of finite numbers, by fewer operations than in `jax.nn.softplus`; its derivative is one."""
    return lax.max(x, jnp.zeros_like(x)) + lax.log1p(lax.exp(-lax.abs(x)))


@_softplus.defjvp
def _softplus_jvp(primals: tuple, tangents: tuple) -> tuple:
    (x,), (dx,) = primals, tangents
    return _softplus(x), dx * lax.logistic(x)
