"""`WeightedSamples`: posterior samples as particles with log-weights, and what can be computed from them."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rws_jax.checks.arguments import check_int, check_rng_key
from rws_jax.core.errors import fail
from rws_jax.core.trees import is_known, is_traced
from rws_jax.estimators import weights
from rws_jax.execution.ragged import missing
from rws_jax.posterior.samples import estimate, layout, resampling
from rws_jax.posterior.samples.estimate import Estimate
from rws_jax.posterior.samples.psis import pareto_smoothed
from rws_jax.posterior.samples.summary import advice, dead_units, summary
from rws_jax.posterior.samples.weighted_draw import Dims


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["samples", "log_weights", "present", "filtering"],
    meta_fields=["dims", "units", "scale", "resampled", "nested"],
)
@dataclass(frozen=True, repr=False)
class WeightedSamples:
    """Particles of the latents with their log-weights, for each unit: what `importance_sample` returns.

    A unit is an element of the plates that all sites are in, or a datum; its weights are its own. All methods work unit
    by unit. A dead unit, whose log-weights are all -inf, has evidence -inf, an effective sample size of zero and no
    expectations (NaN).

    Attributes:
      samples: site -> draws, shape ``(particles, *shape)``, with the shape of the site in the program, after the axis
        of data if there are `data_axes`.
      log_weights: log p(z, x) - log q(z | x) in nats, shape ``(particles, *units)``.
      present: site -> which numbers are there, of the shape of its samples, where programs branch and not all particles
        have it. The others are NaN or, in sites of whole numbers, the least that their type has. Empty for all other
        programs.
      dims: the name of the plate of each axis of each site, without that of particles, as pairs of site and names.
      units: the name of the plate of each axis of `log_weights`, but that of particles; ``"datum"`` for `data_axes`.
      scale: size / subsample size, where units are a minibatch: a sum over units times it estimates that over all data.
      resampled: whether particles were resampled along a scan, and share ancestors. No standard errors are known then
        (NaN) and no k-hat, and effective sample sizes are those of the weights at the end.
      nested: whether latents in inner plates had particles and weights of their own, of which one has been chosen.
      filtering: of particles that were resampled, the draws of each step of the scan, with weights by the data up to
        it: weighted samples whose units are steps, and whose evidence is that of these data. Samples themselves are
        paths of the whole scan, with weights by all data. None for other particles.
    """

    samples: dict[str, jax.Array]
    log_weights: jax.Array
    present: dict[str, jax.Array]
    dims: tuple[tuple[str, Dims], ...]
    units: tuple[str, ...]
    scale: float = 1.0
    resampled: bool = False
    nested: bool = False
    filtering: "WeightedSamples | None" = None

    @property
    def num_particles(self) -> int:
        """How many particles each unit has."""
        return self.log_weights.shape[0]

    @property
    def weights(self) -> jax.Array:
        """Self-normalised weights, shape ``(particles, *units)``: they sum to one over the particles of each unit."""
        return weights.normalise(self._single.log_weights)

    def log_evidence(self) -> Estimate:
        """The log evidence log p(x) of each unit in nats, shape ``units``, with its standard error."""
        return self._known(estimate.log_evidence(self._single.log_weights))

    def effective_sample_size(self) -> jax.Array:
        """Kish's effective sample size of each unit, from 1 to the number of particles; shape ``units``."""
        return estimate.effective_sample_size(self._single.log_weights)

    def pareto_k(self) -> np.ndarray:
        """The shape of the weights' tail in each unit, k-hat, shape ``units``: weights above 0.7 are not to be trusted.

        Computed by ArviZ, on the host. Warns where k-hat is above 0.7.

        Raises:
          ImportError: if ArviZ is not installed.
          TypeError: inside of `jax.jit`.

        References:
          Vehtari, Simpson, Gelman, Yao and Gabry, Pareto Smoothed Importance Sampling, JMLR 25, 2024, arXiv 1507.02646.
        """
        return self._smooth("pareto_k")[1]

    def smoothed(self) -> "WeightedSamples":
        """The same samples with Pareto smoothed weights: the largest ones are replaced by quantiles of a fitted tail.

        Less variance for some bias, in the evidence and in expectations. Errors, warning and source as `pareto_k`.
        """
        return replace(self, log_weights=jnp.asarray(self._smooth("smoothed")[0], self.log_weights.dtype))

    def expectation(self, f: Callable[[dict[str, jax.Array]], Any] | None = None) -> Estimate:
        """The posterior mean of a function of the latents, or of each latent site itself, with its standard error.

        Args:
          f: function of the latents of *one particle of one unit*, a dict of site -> value without the axes of units,
            that returns an array or a tree of arrays; it is mapped over by `jax.vmap`. Where programs branch, a number
            that is not there is what it is in `samples`. None for the latents themselves.

        Returns:
          `Estimate`, value and standard error of shape ``(*units, *f)``; without `f` dicts of site -> mean, of the
          shape of the site in the program. A site that only some particles have has its mean given that it is there.
        """
        if f is None:
            return _estimates({name: self._mean_of(name) for name in self.samples})
        values = jax.vmap(jax.vmap(f))({name: self._by_unit(name, self.samples[name]) for name in self.samples})
        return _estimates(jax.tree.map(self._mean_of_each_unit, values))

    def quantile(self, q: Any) -> dict[str, jax.Array]:
        """Posterior quantiles of each number of each latent site.

        The least draw at which the cumulative weight is at least q.

        Args:
          q: one level in [0, 1], or an array of them.

        Returns:
          Site -> quantiles, shape ``(*q, *shape)``.

        Raises:
          ValueError: for a level outside of [0, 1].
        """
        levels = jnp.asarray(q, float)
        if not is_traced(levels) and not np.all((np.asarray(levels) >= 0) & (np.asarray(levels) <= 1)):
            what, hint = "a level of quantile is out of range", "quantile([0.05, 0.95]), say"
            fail(ValueError, what, expected="numbers in [0, 1]", found=f"{q}", hint=hint)
        quantiles = {}
        for name in self.samples:
            values = self._by_unit(name, self.samples[name])
            found = estimate.weighted_quantiles(self._weights_of(name), values, levels)
            quantiles[name] = self._in_place(name, found, levels.ndim)
        return quantiles

    def resample(self, rng_key: jax.Array, num_samples: int, method: str = "systematic") -> dict[str, jax.Array]:
        """Draw samples of equal weight, as `numpyro.infer.Predictive` takes them, each unit's by itself.

        Args:
          rng_key: JAX random key.
          num_samples: how many; particles come as often as their weight says.
          method: ``"systematic"``, or ``"multinomial"`` for independent draws.

        Returns:
          Site -> samples, shape ``(num_samples, *shape)``, in random order. What is missing, where programs branch or
          in dead units, is NaN or, in sites of whole numbers, the least of their type. A warning names dead units.
        """
        indices = self.indices(rng_key, num_samples, method)
        return {name: self.taken(name, indices) for name in self.samples}

    def indices(self, rng_key: jax.Array, num_samples: int, method: str = "systematic") -> jax.Array:
        """Which particles `resample` takes, shape ``(num_samples, *units)``."""
        check_rng_key(rng_key, "the first argument of resample", "weighted.resample(jax.random.key(0), 1000)")
        check_int(num_samples, "num_samples", 1, expected="an int >= 1", hint="pass 1000, say")
        if method not in resampling.METHODS:
            what, expected = "option 'method' of resample is none of its values", f"one of {list(resampling.METHODS)}"
            fail(ValueError, what, expected=expected, found=f"{method!r}", hint="leave it out")
        self._warn_of_dead()
        indices = resampling.METHODS[method](rng_key, self._flat_log_weights, num_samples)
        return indices.reshape(num_samples, *self._unit_shape)

    def __repr__(self) -> str:
        if not is_known(self) or self.log_weights.ndim != 1 + len(self.units):
            return f"WeightedSamples(log_weights of shape {self.log_weights.shape})"
        return summary(self)

    def taken(self, name: str, indices: jax.Array) -> jax.Array:
        """Draws of a site at particles of each unit, as `indices` gives them."""
        values, flat = self._by_unit(name, self.samples[name]), indices.reshape(len(indices), -1)
        found = jnp.take_along_axis(values, layout.beside(flat, values), axis=0)
        alive = weights.alive(self._flat_log_weights)[None]
        found = jnp.where(layout.beside(alive, values), found, jnp.asarray(missing(values.dtype), values.dtype))
        return self._in_place(name, found, 1)

    @property
    def _single(self) -> "WeightedSamples":
        """The same, once it is clear that these are the samples of one call."""
        if self.log_weights.ndim != 1 + len(self.units):
            fail(
                ValueError,
                "these are weighted samples of several calls, as jax.vmap returns them",
                expected=f"log-weights with axes {('particles', *self.units)}",
                found=f"shape {self.log_weights.shape}",
                hint="map over the method as well: jax.vmap(lambda weighted: weighted.log_evidence())(weighted)",
            )
        return self

    @property
    def _unit_shape(self) -> tuple[int, ...]:
        return self._single.log_weights.shape[1:]

    @property
    def _flat_log_weights(self) -> jax.Array:
        """Of shape ``(particles, units)``, all units as one axis."""
        return self.log_weights.reshape(self.num_particles, math.prod(self._unit_shape))

    def _by_unit(self, name: str, values: jax.Array) -> jax.Array:
        return layout.by_unit(values, dict(self.dims)[name], self.units)

    def _in_place(self, name: str, values: jax.Array, num_leading: int) -> jax.Array:
        return layout.in_place(values, dict(self.dims)[name], self.units, self._unit_shape, num_leading)

    def _weights_of(self, name: str) -> jax.Array:
        """Weights for each number of a site, zero where it is not there; shape ``(particles, units, *rest)``."""
        values = self._by_unit(name, self.samples[name])
        w = jnp.broadcast_to(layout.beside(weights.normalise(self._flat_log_weights), values), values.shape)
        return jnp.where(self._by_unit(name, self.present[name]), w, 0.0) if name in self.present else w

    def _mean_of(self, name: str) -> Estimate:
        mean = estimate.weighted_mean(self._weights_of(name), self._by_unit(name, self.samples[name]))
        return self._known(Estimate(*(self._in_place(name, x, 0) for x in mean)))

    def _mean_of_each_unit(self, values: jax.Array) -> Estimate:
        w = layout.beside(weights.normalise(self._flat_log_weights), values)
        mean = estimate.weighted_mean(w, values)
        return self._known(Estimate(*(x.reshape(*self._unit_shape, *x.shape[1:]) for x in mean)))

    def _known(self, found: Estimate) -> Estimate:
        """An estimate whose error is unknown where particles are not independent."""
        return found.without_error if self.resampled else found

    def _smooth(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        if is_traced(self.log_weights):
            what, hint = (
                f"{method} is called inside of jit, scan or vmap",
                "call it on what a compiled function returns",
            )
            fail(TypeError, what, expected="a call from Python", found="traced log-weights", hint=hint)
        if self.resampled:
            return np.asarray(self.log_weights), np.full(self.log_weights.shape[1:], np.nan)
        smoothed, k = pareto_smoothed(np.asarray(self.log_weights))
        text = advice(self, k)
        if text:
            warnings.warn(text, stacklevel=3)
        return smoothed, k

    def _warn_of_dead(self) -> None:
        text = dead_units(np.asarray(self.log_weights)) if is_known(self.log_weights) else None
        if text:
            warnings.warn(f"Samples of some units mean nothing. {text}", stacklevel=4)


def _estimates(means: Any) -> Estimate:
    """A tree of estimates as one whose fields are trees."""
    of = lambda field: jax.tree.map(lambda mean: getattr(mean, field), means, is_leaf=lambda x: isinstance(x, Estimate))
    return Estimate(of("value"), of("standard_error"))
