r"""Proposals for variables of few values: the prior's log-probabilities, plus numbers from a network.

.. math:: q(z_d = v \mid z_{<d}) \propto p(z_d = v) \exp(o_{dv} + \sum_{e<d} w_{dev}^\top f(z_e))

The elements of one event depend on those before them, as far as their number allows it.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, ExpandedDistribution, Independent, constraints

from rws_jax.guides.proposals.arrays import cut, dtype_of_draws, of_one_rank, stopped, strictly_lower

MAX_VALUES = 64
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
        is_value = _is_value(jnp.asarray(value), self.event_dim, self.values)
        logits = self.logits
        if self.coupling is not None:
            coupling, features = of_one_rank(self.coupling, _features(is_value)[..., None, :, None, :])
            added = jnp.einsum("...devf,...ef->...dv", coupling, features[..., 0, :, 0, :])
            logits, added = of_one_rank(logits, added)
            logits = logits + added
        log_probs, is_value = of_one_rank(jax.nn.log_softmax(logits), is_value)
        of_element = jnp.sum(jnp.where(is_value, log_probs, 0.0), axis=-1)
        return jnp.where(is_value.any(axis=-1), of_element, -jnp.inf).sum(axis=-1)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw values, in the type of numbers that the prior draws."""
        assert key is not None
        num_elements, num_values = self.logits.shape[-2:]
        noise = jax.random.gumbel(key, (*sample_shape, *self.batch_shape, num_elements, num_values))
        noise, logits = of_one_rank(noise, self.logits)
        noisy = logits + noise
        index = jnp.argmax(noisy, axis=-1) if self.coupling is None else self._sample_in_order(noisy)
        value = jnp.asarray(self.values, dtype_of_draws(self.prior))[index]
        return value.reshape(value.shape[:-1] + self.event_shape)

    def _sample_in_order(self, noisy: jax.Array) -> jax.Array:
        """Indices of values, of which each takes into account those that were drawn before."""
        assert self.coupling is not None
        drawn: list[jax.Array] = []
        indices: list[jax.Array] = []
        for element in range(noisy.shape[-2]):
            logits = noisy[..., element, :]
            for before, is_value in enumerate(drawn):
                features = _features(is_value)
                weights, features = of_one_rank(self.coupling[..., element, before, :, :], features[..., None, :])
                # By a product of matrices: XLA on CPU (jaxlib 0.10) compiles the sum of products to wrong numbers.
                logits = logits + jnp.einsum("...vf,...f->...v", weights, features[..., 0, :])
            indices.append(jnp.argmax(logits, axis=-1))
            drawn.append(jax.nn.one_hot(indices[-1], logits.shape[-1], dtype=bool))
        return jnp.stack(indices, axis=-1)


@dataclass(frozen=True)
class FiniteFamily:
    """Proposals for events of `num_elements` numbers, each of which is one of `values`."""

    num_elements: int
    values: tuple

    is_numeric = False

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
    def size(self) -> int:
        """Number of outputs for one batch element."""
        return self.num_elements * self._num_outputs + math.prod(self._coupling or (0,))

    @property
    def num_features(self) -> int:
        """Numbers that describe one value."""
        return self.num_elements * self._num_outputs

    @property
    def num_prior_features(self) -> int:
        """Numbers that describe one prior."""
        return self.num_elements * self._num_outputs

    def features(self, fn: Distribution, value: Any) -> jax.Array:
        """-1 and 1 for one of two values; one of more is encoded by as many zeros and ones."""
        features = _features(_is_value(jnp.asarray(value), fn.event_dim, self.values))
        return features.reshape((*features.shape[:-2], self.num_features))

    def prior_features(self, fn: Distribution) -> jax.Array:
        """Log-probabilities of values, or the logarithm of odds if there are two, in nats and clipped at 10."""
        log_probs = jnp.clip(log_probs_of_values(stopped(fn), self.values), -10.0)
        features = log_probs[..., 1:] - log_probs[..., :1] if len(self.values) == 2 else log_probs
        return features.reshape((*fn.batch_shape, self.num_prior_features))

    def proposal(self, fn: Distribution, outputs: jax.Array) -> Finite:
        """The prior, with `outputs` of shape `(*batch, size)` added to its log-probabilities."""
        prior, num_values = stopped(fn), len(self.values)
        shapes = [(self.num_elements, self._num_outputs), *([] if self._coupling is None else [self._coupling])]
        own, *weights = cut(outputs, shapes)
        log_probs = log_probs_of_values(prior, self.values)
        # A value that is impossible stays so, and its output has a gradient of zero and not of NaN.
        logits = jnp.where(log_probs > _LOG_ZERO, _of_values(own, num_values) + log_probs, -jnp.inf)
        coupling = None
        if weights:
            entries = jnp.moveaxis(weights[0], -3, -1)
            square = strictly_lower(entries, self.num_elements)
            coupling = _of_values(jnp.moveaxis(square, (-4, -3), (-2, -1)), num_values, axis=-2)
        return Finite(prior, logits, coupling, self.values)


def finite_family(fn: Distribution) -> FiniteFamily | None:
    """Proposals for a distribution whose elements, each for itself, have few values; None if it is not one."""
    values = values_of(fn)
    num_elements = math.prod(fn.event_shape)
    return None if values is None or num_elements == 0 else FiniteFamily(num_elements, values)


def values_of(fn: Distribution) -> tuple | None:
    """The values that each element of an event can take, where they are known and few."""
    element = _element(fn)
    if element is None or not element.has_enumerate_support:
        return None
    try:
        with jax.ensure_compile_time_eval():
            values = np.ravel(element.enumerate_support(expand=False))
    except (NotImplementedError, TypeError, ValueError):  # as bounds are traced, or differ within the batch
        return None
    return tuple(values.tolist()) if 1 < len(values) <= MAX_VALUES else None


def log_probs_of_values(fn: Distribution, values: tuple) -> jax.Array:
    """Log-probability of each value, in nats, of shape `(*batch, elements, values)`.

    The distribution need not know its values: under `jax.jit` the bounds of a uniform one are traced.
    """
    element = _element(fn)
    assert element is not None
    of_value = lambda value: element.log_prob(jnp.full(element.batch_shape, value))
    log_probs = jax.vmap(of_value, out_axes=-1)(jnp.asarray(values, dtype_of_draws(element)))
    log_probs = jnp.broadcast_to(log_probs, (*fn.shape(), len(values)))
    return log_probs.reshape((*fn.batch_shape, math.prod(fn.event_shape), len(values)))


def _element(fn: Distribution) -> Distribution | None:
    """The distribution of single numbers inside of event dimensions; None where an event is more than that."""
    while isinstance(fn, Independent) or (isinstance(fn, ExpandedDistribution) and fn.event_dim > 0):
        fn = fn.base_dist
    return None if fn.event_dim > 0 else fn


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
