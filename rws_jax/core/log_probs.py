r"""Log densities in forms that are exact where NumPyro's are not.

The density of logits, :math:`y l - \log(1 + e^l)`, is written there as a clip and an absolute value, whose derivatives
at :math:`l = 0` are not those of the function: 0 and 1 in place of -1/2 and 1/2. Guides start there. The density of an
inverse Gamma distribution is that of the inverse, whose Jacobian overflows from 1e19 on.

That of a category is written out for speed alone. NumPyro's is differentiated as a gather, whose derivative is a
scatter, and sums along a short axis are slow in XLA on CPU.
"""

from copy import copy
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln, logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import BernoulliLogits, BinomialLogits, CategoricalLogits, Distribution, InverseGamma


class _SmoothBernoulli(BernoulliLogits):
    def log_prob(self, value: ArrayLike) -> jax.Array:
        return _log_prob(_floats(self.logits), jnp.asarray(value), 1)


class _SmoothBinomial(BinomialLogits):
    def log_prob(self, value: ArrayLike) -> jax.Array:
        total, value = jnp.asarray(self.total_count), jnp.asarray(value)
        log_choices = gammaln(total + 1.0) - gammaln(value + 1.0) - gammaln(total - value + 1.0)
        return log_choices + _log_prob(_floats(self.logits), value, total)


class _DirectCategorical(CategoricalLogits):
    def log_prob(self, value: ArrayLike) -> jax.Array:
        return _log_prob_of_category(_floats(self.logits), jnp.asarray(value))


class _DirectInverseGamma(InverseGamma):
    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> jax.Array:
        constant = self.concentration * jnp.log(self.rate) - gammaln(self.concentration)
        return constant - (self.concentration + 1.0) * jnp.log(value) - self.rate / jnp.asarray(value)


_EXACT = {
    BernoulliLogits: _SmoothBernoulli,
    BinomialLogits: _SmoothBinomial,
    CategoricalLogits: _DirectCategorical,
    InverseGamma: _DirectInverseGamma,
}
_FEW = 8  # up to so many categories are added up one by one


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


def _floats(logits: Any) -> jax.Array:
    """Logits as NumPyro promotes them: they may be whole numbers."""
    return jnp.asarray(logits, jnp.result_type(logits, float))


def _has_parts(value: Any) -> bool:
    return isinstance(value, Distribution) or (isinstance(value, list | tuple) and any(map(_has_parts, value)))


def _exact_parts(value: Any) -> Any:
    """Components of a mixture come in a list."""
    if isinstance(value, Distribution):
        return exact(value)
    return [exact(part) if isinstance(part, Distribution) else part for part in value]


def _log_prob(logits: jax.Array, value: jax.Array, total: jax.Array | int) -> jax.Array:
    """Of `value` successes, in any order; where logits are infinite all trials come out alike."""
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


@jax.custom_jvp
def _log_prob_of_category(logits: jax.Array, value: jax.Array) -> jax.Array:
    """Of logits ``(*batch, categories)`` at integers of a shape that broadcasts with the batch."""
    shape = lax.broadcast_shapes(value.shape, logits.shape[:-1])
    at = jnp.broadcast_to(value, shape)[..., None]
    chosen = jnp.take_along_axis(jnp.broadcast_to(logits, (*shape, logits.shape[-1])), at, axis=-1)[..., 0]
    return chosen - jnp.broadcast_to(_log_sum_exp(logits), shape)


@_log_prob_of_category.defjvp
def _log_prob_of_category_jvp(primals: tuple, tangents: tuple) -> tuple:
    (logits, value), (d_logits, _) = primals, tangents
    log_prob = _log_prob_of_category(logits, value)
    full = (*log_prob.shape, logits.shape[-1])
    is_chosen = jnp.broadcast_to(value[..., None], full) == lax.broadcasted_iota(int, full, len(full) - 1)
    d_chosen = jnp.sum(jnp.where(is_chosen, jnp.broadcast_to(d_logits, full), 0.0), axis=-1)
    probs = jnp.exp(logits - _log_sum_exp(logits)[..., None])
    return log_prob, d_chosen - jnp.broadcast_to(jnp.sum(probs * d_logits, axis=-1), log_prob.shape)


def _log_sum_exp(logits: jax.Array) -> jax.Array:
    """Along the last axis."""
    num = logits.shape[-1]
    if num > _FEW:
        return logsumexp(logits, axis=-1)
    each = [logits[..., number] for number in range(num)]
    highest = lax.stop_gradient(reduce(lax.max, each))  # removes that of a shift, in which the value is constant
    highest = jnp.where(jnp.isfinite(highest), highest, jnp.zeros_like(highest))
    return highest + jnp.log(reduce(lax.add, [jnp.exp(one - highest) for one in each]))
