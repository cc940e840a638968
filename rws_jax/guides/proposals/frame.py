"""Where a prior lies: location and scale, about its mean and standard deviation, in unconstrained coordinates."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import digamma, gammaln, polygamma
from numpyro.distributions import Distribution, constraints

from rws_jax.guides.proposals.coordinates import Coordinates, coordinates_of

Frame = tuple[jax.Array, jax.Array]
_EULER = 0.5772156649015329


def frame_of(fn: Distribution) -> Frame:
    """Location and scale of each coordinate of the events of a distribution, `(*batch, elements)`; both finite."""
    coordinates = coordinates_of(fn)
    assert coordinates is not None
    base: Any = fn
    while isinstance(base, dist.ExpandedDistribution | dist.Independent):
        base = base.base_dist
    location, scale = _of_base(base)
    shape = (*fn.batch_shape, *coordinates.vector_shape)
    flat = lambda x: jnp.broadcast_to(x, shape).reshape((*fn.batch_shape, coordinates.num_elements))
    return flat(jnp.where(jnp.isfinite(location), location, 0.0)), flat(_proper(scale))


def _proper(scale: jax.Array) -> jax.Array:
    """A scale that can be divided by."""
    return jnp.clip(jnp.where(jnp.isfinite(scale), scale, 1.0), 1e-6, 1e15)


def _of_base(fn: Any) -> Frame:
    """The frame of one distribution, in the shape of its coordinates or one that broadcasts to it."""
    exact = _exact(fn)
    if exact is not None:
        return exact
    coordinates = coordinates_of(fn)
    moments = None if coordinates is None else _moved(fn, coordinates) or _moments(fn, coordinates)
    if moments is not None:
        return moments
    if fn.support is constraints.real and hasattr(fn, "loc") and hasattr(fn, "scale"):
        return jnp.asarray(fn.loc, float), jnp.asarray(fn.scale, float)
    return jnp.zeros(()), jnp.ones(())


def _exact(fn: Any) -> Frame | None:
    """Mean and standard deviation of the coordinates themselves, for families where they are known."""
    of = lambda name: jnp.asarray(getattr(fn, name), float)
    if isinstance(fn, dist.Normal | dist.LogNormal):
        return of("loc"), of("scale")
    if isinstance(fn, dist.Uniform):
        return jnp.zeros(()), jnp.asarray(math.pi / math.sqrt(3.0))  # a logistic variable
    if isinstance(fn, dist.Gamma):
        return digamma(of("concentration")) - jnp.log(of("rate")), jnp.sqrt(_trigamma(of("concentration")))
    if isinstance(fn, dist.InverseGamma):
        return jnp.log(of("rate")) - digamma(of("concentration")), jnp.sqrt(_trigamma(of("concentration")))
    if isinstance(fn, dist.Exponential):
        return -_EULER - jnp.log(of("rate")), jnp.asarray(math.pi / math.sqrt(6.0))
    if isinstance(fn, dist.HalfNormal):
        return jnp.log(of("scale")) - 0.5 * (_EULER + math.log(2.0)), jnp.asarray(math.pi / math.sqrt(8.0))
    if isinstance(fn, dist.HalfCauchy):
        return jnp.log(of("scale")), jnp.asarray(0.5 * math.pi)
    if isinstance(fn, dist.Beta):
        return _of_odds(of("concentration1"), of("concentration0"))
    if isinstance(fn, dist.Dirichlet):
        stick = of("concentration")
        rest = jnp.flip(jnp.cumsum(jnp.flip(stick, -1), -1), -1)
        location, scale = _of_odds(stick[..., :-1], rest[..., 1:])
        num = stick.shape[-1] - 1
        shift = jnp.log(num - jnp.arange(num)).reshape((1,) * (stick.ndim - 1) + (num,))
        return location + shift, scale
    if isinstance(fn, dist.LKJ | dist.LKJCholesky):
        return _of_correlations(of("concentration"), fn.dimension)
    if isinstance(fn, dist.Wishart | dist.WishartCholesky):
        return _of_covariance(of("concentration"), of("scale_tril"))
    return None


def _of_correlations(concentration: jax.Array, num: int) -> Frame:
    """Partial correlations, of which (1 + r) / 2 is a Beta variable; coordinates are their inverse tanh."""
    column = np.tril_indices(num, -1)[1]
    a = concentration[..., None] + jnp.asarray((num - 2 - column) / 2.0).reshape((1,) * concentration.ndim + (-1,))
    return jnp.zeros(()), jnp.sqrt(0.5 * _trigamma(a))


def _of_covariance(freedom: jax.Array, factor: jax.Array) -> Frame:
    """Bartlett's decomposition: the factor times a triangular matrix of normal variables below chi variables."""
    num = factor.shape[-1]
    half = 0.5 * (freedom[..., None] - jnp.arange(num).reshape((1,) * freedom.ndim + (num,)))
    chi = math.sqrt(2.0) * jnp.exp(gammaln(half + 0.5) - gammaln(half))
    squares = factor**2
    # Of column k of the factor, times row k: the diagonal, and the normal variables before it.
    variance = (
        squares * (2.0 * half - chi**2)[..., None, :] + jnp.flip(jnp.cumsum(jnp.flip(squares, -1), -1), -1) - squares
    )
    row, column = np.tril_indices(num, -1)
    diagonal = jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)) + 0.5 * (digamma(half) + math.log(2.0))
    location = [(factor * chi[..., None, :])[..., row, column], diagonal]
    scale = [jnp.sqrt(variance)[..., row, column], 0.5 * jnp.sqrt(_trigamma(half))]
    return jnp.concatenate(location, axis=-1), jnp.concatenate(scale, axis=-1)


def _of_odds(a: jax.Array, b: jax.Array) -> Frame:
    """The frame of the logarithm of odds of a Beta variable."""
    return digamma(a) - digamma(b), jnp.sqrt(_trigamma(a) + _trigamma(b))


def _trigamma(x: jax.Array) -> jax.Array:
    return polygamma(1, x)


def _moved(fn: Any, coordinates: Coordinates) -> Frame | None:
    """Where the transforms of a distribution put the frame of what they transform, by the delta method."""
    if not isinstance(fn, dist.TransformedDistribution):
        return None
    base = coordinates_of(fn.base_dist)
    if base is None or base.num_elements != coordinates.num_elements:
        return None
    location, scale = frame_of(fn.base_dist)

    def move(x: jax.Array) -> jax.Array:
        value: Any = base.forward(x)
        for transform in fn.transforms:
            value = transform(value)
        return coordinates.inverse(value)[0]

    units = jnp.eye(base.num_elements, dtype=location.dtype)
    with jax.numpy_rank_promotion("allow"):  # parameters of transforms may have fewer batch dimensions
        along = lambda unit: jax.jvp(move, (location,), (scale * unit,))
        moved, columns = jax.vmap(along, out_axes=(None, 0))(units)
        deviation = jnp.sqrt(jnp.sum(columns**2, axis=0))
    batch = moved.shape[:-1]
    return moved.reshape(batch + coordinates.vector_shape), deviation.reshape(batch + coordinates.vector_shape)


def _moments(fn: Any, coordinates: Coordinates) -> Frame | None:
    """The frame by the delta method; None where a distribution knows no mean and variance."""
    try:
        mean, variance = jnp.asarray(fn.mean, float), jnp.asarray(fn.variance, float)
    except (NotImplementedError, AttributeError, TypeError):
        return None
    if fn.support in (constraints.real, constraints.real_vector, constraints.real_matrix):
        location, scale, factor = mean, jnp.sqrt(variance), jnp.ones(())
    elif fn.event_dim == 0:
        location, factor = jax.jvp(lambda x: coordinates.inverse(x)[0], (mean,), (jnp.ones_like(mean),))
        location, factor, scale = location[..., 0], factor[..., 0], jnp.sqrt(variance)
    else:
        return None
    known = {name: jnp.asarray(getattr(fn, name), float) for name in ("loc", "scale") if hasattr(fn, name)}
    if fn.support is constraints.real and len(known) == 2:  # of a family without finite variance
        location = jnp.where(jnp.isfinite(location), location, known["loc"])
        scale = jnp.where(jnp.isfinite(scale), scale, known["scale"])
    return location, scale * jnp.abs(factor)
