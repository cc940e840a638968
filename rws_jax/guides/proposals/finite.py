r"""Proposals for variables of few values: the prior's log-probabilities, plus numbers from a network.

.. math:: q(z_d = v \mid z_{<d}) \propto p(z_d = v) \exp(o_{dv} + \sum_{e<d} w_{dev}^\top f(z_e))

The elements of one event depend on those before them, as far as their number allows it.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution, constraints

from rws_jax.guides.proposals.arrays import cut, dtype_of_draws, of_one_rank, stopped, strictly_lower
from rws_jax.guides.proposals.values import log_probs_of_values, values_of

MAX_DEPENDENT = 16  # elements of one event
MAX_WEIGHTS = 1024
_LOG_ZERO = -1e30  # NumPyro writes the logarithm of zero as the least number that there is.


class Finite(Distribution):
    """One of a few values at each element of an event, with logits that may depend on the elements before.

    Args:
        prior: Distribution of the same batch shape and event shape.
        logits: Of each value at each element when all features before it are zero, `(*batch, elements, values)`.
        coupling: What the features of an element add to the logits of a later one, `(*batch, elements, elements,
            values, features)`; None where elements are independent.
        values: All values, in the order of the logits.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_matrix}
    pytree_data_fields = ("prior", "logits", "coupling")
    pytree_aux_fields = ("values", "has_enumerate_support")

    def __init__(self, prior: Distribution, logits: jax.Array, coupling: jax.Array | None, values: tuple):
        self.prior, self.logits, self.coupling, self.values = prior, logits, coupling, values
        self.has_enumerate_support = bool(prior.has_enumerate_support)
        # Logits of impossible values are minus infinity, which no constraint of NumPyro allows for.
        super().__init__(prior.batch_shape, prior.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The prior's own."""
        return self.prior.support

    def enumerate_support(self, expand: bool = True) -> jax.Array:
        """All values, as the prior gives them."""
        return self.prior.enumerate_support(expand=expand)

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Log-probability of each event, in nats; minus infinity for a number that is none of the values."""
        return _log_prob(jnp.asarray(value), self.logits, self.coupling, self.event_dim, self.values)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw values, in the type of numbers that the prior draws."""
        assert key is not None
        shape, dtype = (*sample_shape, *self.batch_shape), dtype_of_draws(self.prior)
        return _drawn(key, self.logits, self.coupling, shape, self.values, dtype).reshape(shape + self.event_shape)


@dataclass(frozen=True)
class FiniteFamily:
    """Proposals for events of `num_elements` numbers, each of which is one of `values`."""

    num_elements: int
    values: tuple

    @property
    def _num_outputs(self) -> int:
        """Outputs for one element: the logarithm of odds, if there are two values."""
        return 1 if len(self.values) == 2 else len(self.values)

    @property
    def _coupling(self) -> tuple[int, ...] | None:
        num_pairs = self.num_elements * (self.num_elements - 1) // 2
        shape = (num_pairs, self._num_outputs, self._num_outputs)
        return shape if num_pairs and self.num_elements <= MAX_DEPENDENT and math.prod(shape) <= MAX_WEIGHTS else None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parts of outputs: those of elements, and those of pairs."""
        return [(self.num_elements, self._num_outputs), *([] if self._coupling is None else [self._coupling])]

    @property
    def size(self) -> int:
        """Number of outputs for one batch element."""
        return sum(math.prod(shape) for shape in self.shapes)

    def features(self, fn: Distribution, value: Any) -> jax.Array:
        """-1 and 1 for one of two values; one of more is encoded by as many zeros and ones."""
        features = _features(_is_value(jnp.asarray(value), fn.event_dim, self.values))
        return features.reshape((*features.shape[:-2], -1))

    def prior_features(self, fn: Distribution) -> jax.Array:
        """Log-probabilities of values, or the logarithm of odds if there are two, in nats and clipped at 10."""
        log_probs = jnp.clip(log_probs_of_values(stopped(fn), self.values), -10.0)
        features = log_probs[..., 1:] - log_probs[..., :1] if len(self.values) == 2 else log_probs
        return features.reshape((*fn.batch_shape, -1))

    def proposal(self, fn: Distribution, outputs: jax.Array) -> Finite:
        """The prior, with `outputs` of shape `(*batch, size)` added to its log-probabilities."""
        prior = stopped(fn)
        return Finite(prior, *_moved(self, outputs, log_probs_of_values(prior, self.values)), self.values)


def finite_family(fn: Distribution) -> FiniteFamily | None:
    """Proposals for a distribution whose elements, each for itself, have few values; None if it is not one."""
    values = values_of(fn)
    num_elements = math.prod(fn.event_shape)
    return None if values is None or num_elements == 0 else FiniteFamily(num_elements, values)


def _is_value(value: jax.Array, event_dim: int, values: tuple) -> jax.Array:
    """Which of the values each element has, of shape `(*batch, elements, values)`."""
    batch = value.shape[: value.ndim - event_dim]
    flat = value.reshape((*batch, math.prod(value.shape[len(batch) :]), 1))
    return flat == jnp.asarray(values).reshape((1,) * (flat.ndim - 1) + (-1,))


def _features(is_value: jax.Array) -> jax.Array:
    """-1 and 1 for one of two values, else zeros and a one."""
    if is_value.shape[-1] == 2:
        return is_value[..., 1:] * 2.0 - 1.0
    return is_value.astype(jnp.result_type(float))


def _of_values(outputs: jax.Array, num_values: int, axis: int = -1) -> jax.Array:
    """What is added to the logits of all values; the first of two gets nothing."""
    return jnp.concatenate([jnp.zeros_like(outputs), outputs], axis=axis) if num_values == 2 else outputs


# Programs that branch run un-jitted: these cost one call each then, and not one for each operation.
@partial(jax.jit, static_argnums=(3, 4), inline=True)
def _log_prob(
    value: jax.Array, logits: jax.Array, coupling: jax.Array | None, event_dim: int, values: tuple
) -> jax.Array:
    is_value = _is_value(value, event_dim, values)
    if coupling is not None:
        coupling, features = of_one_rank(coupling, _features(is_value)[..., None, :, None, :])
        added = jnp.einsum("...devf,...ef->...dv", coupling, features[..., 0, :, 0, :])
        logits, added = of_one_rank(logits, added)
        logits = logits + added
    log_probs, is_value = of_one_rank(jax.nn.log_softmax(logits), is_value)
    of_element = jnp.sum(jnp.where(is_value, log_probs, 0.0), axis=-1)
    return jnp.where(is_value.any(axis=-1), of_element, -jnp.inf).sum(axis=-1)


@partial(jax.jit, static_argnums=(3, 4, 5), inline=True)
def _drawn(
    key: jax.Array, logits: jax.Array, coupling: jax.Array | None, shape: tuple[int, ...], values: tuple, dtype: Any
) -> jax.Array:
    """One of the values at each element, `(*shape, elements)`."""
    noise, logits = of_one_rank(jax.random.gumbel(key, shape + logits.shape[-2:]), logits)
    noisy = logits + noise
    index = jnp.argmax(noisy, axis=-1) if coupling is None else _in_order(noisy, coupling)
    return jnp.asarray(values, dtype)[index]


def _in_order(noisy: jax.Array, coupling: jax.Array) -> jax.Array:
    """Indices of values, of which each takes into account those that were drawn before."""
    drawn: list[jax.Array] = []
    indices: list[jax.Array] = []
    for element in range(noisy.shape[-2]):
        logits = noisy[..., element, :]
        for before, is_value in enumerate(drawn):
            features = _features(is_value)
            weights, features = of_one_rank(coupling[..., element, before, :, :], features[..., None, :])
            logits = logits + jnp.einsum("...vf,...f->...v", weights, features[..., 0, :])
        # By its index: compiled, logits may be computed twice and rounded differently, and none equals the maximum.
        indices.append(jnp.argmax(logits, axis=-1))
        drawn.append(jax.nn.one_hot(indices[-1], logits.shape[-1], dtype=bool))
    return jnp.stack(indices, axis=-1)


@partial(jax.jit, static_argnums=0, inline=True)
def _moved(family: FiniteFamily, outputs: jax.Array, log_probs: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Logits of values, and coupling of elements."""
    own, *weights = cut(outputs, family.shapes)
    num_values = len(family.values)
    # A value that is impossible stays so, and its output has a gradient of zero and not of NaN.
    logits = jnp.where(log_probs > _LOG_ZERO, _of_values(own, num_values) + log_probs, -jnp.inf)
    if not weights:
        return logits, None
    square = strictly_lower(jnp.moveaxis(weights[0], -3, -1), family.num_elements)
    return logits, _of_values(jnp.moveaxis(square, (-4, -3), (-2, -1)), num_values, axis=-2)
