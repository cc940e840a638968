"""Log densities of particles and of dreams, for each unit: what estimators are functions of."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
from jax import lax

from rws_jax.estimators import weights
from rws_jax.estimators.weights import PerParticle, WeightSummary
from rws_jax.programs.density import Units


class PerUnit:
    """Arrays whose last axes are the units of `Units`; particles, and data, come before them."""

    units: Units
    sites: frozenset[str]  # names of the latent sites

    @property
    def scale(self) -> float:
        """Size / subsample size: a sum over units times it estimates the sum over the full data."""
        return self.units.scale

    def joint(self) -> Self:
        """All units as one: where sites differ from particle to particle, what the units are is not known."""
        num_axes = len(self.units.sizes)
        summed: Any = jax.tree.map(lambda x: jnp.sum(x, axis=tuple(range(x.ndim - num_axes, x.ndim))), self)
        return replace(summed, units=Units((), self.units.scale), sites=frozenset())


class Term(NamedTuple):
    """Draws that the guide learns from: wake-phi is minus the sum of ``w * log_q``, over all terms.

    Arrays of one shape, of which weights and baseline are constants. The sum of ``baseline * log_q`` has a gradient of
    expectation zero.
    """

    log_q: jax.Array
    w: jax.Array
    baseline: jax.Array


class Weighed(Protocol):
    """What the losses are functions of: particles with their weights."""

    @property
    def scale(self) -> float:
        """Size / subsample size: a sum over units times it estimates the sum over the full data."""
        ...

    @property
    def log_weights(self) -> PerParticle:
        """Log-weights in nats, the mean of whose exponentials estimates the evidence; constant to the guide."""
        ...

    @property
    def terms(self) -> list[Term]:
        """What the guide learns from."""
        ...

    @property
    def summary(self) -> WeightSummary:
        """How the weights of each unit are spread."""
        ...


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["log_p", "log_q", "log_u", "log_w_of_draw"],
    meta_fields=["units", "sites", "delta"],
)
@dataclass(frozen=True)
class Scored(PerUnit):
    """Log densities of particles in nats, each of shape ``(particles, *units)``, or ``units`` for a single one.

    They were drawn from r, which is the guide's q itself unless a share `delta` of them comes from u, a defensive
    proposal. `log_w_of_draw` holds the log-weights as functions of the draws alone, through which the gradient of
    reparameterised ones passes.
    """

    log_p: PerParticle
    log_q: PerParticle
    units: Units
    sites: frozenset[str] = frozenset()
    log_u: PerParticle | None = None
    delta: float = 0.0
    log_w_of_draw: PerParticle | None = None

    @property
    def log_r(self) -> PerParticle:
        """Log density of what particles were drawn from; as a function of parameters, of those of the guide alone."""
        if self.log_u is None:
            return self.log_q
        log_u = lax.stop_gradient(self.log_u)  # where u is the model's prior, no loss of the guide trains the model
        return weights.log_mixture(self.log_q, log_u, self.delta)

    @property
    def log_weights(self) -> PerParticle:
        """``log p - log r``; all that phi is trained on beside log q, and constant to it."""
        return weights.log_weights(self.log_p, lax.stop_gradient(self.log_r))  # the bound does not train the guide

    @property
    def terms(self) -> list[Term]:
        """What the guide learns from: all draws of a particle together, with its weight."""
        log_w = lax.stop_gradient(self.log_weights)  # weights and baseline train neither theta nor the proposals
        log_ratio = lax.stop_gradient(weights.log_weights(self.log_q, self.log_r))  # nor does the baseline's q / r
        return [Term(self.log_q, weights.normalise(log_w), weights.score_baseline(log_w, log_ratio))]

    @property
    def summary(self) -> WeightSummary:
        """How the weights of each unit are spread."""
        return weights.summarise(lax.stop_gradient(self.log_weights))  # reported, and trains nothing


@partial(jax.tree_util.register_dataclass, data_fields=["log_q"], meta_fields=["units", "sites"])
@dataclass(frozen=True)
class ScoredDreams(PerUnit):
    """The same for dreams, which are scored by the guide alone."""

    log_q: PerParticle
    units: Units
    sites: frozenset[str] = frozenset()
