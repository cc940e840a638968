"""Models and guides that several tests share, each with an oracle worked out without the package."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import cond, scan


def rows(values, *, fast):
    """Parameters of a test, all of which are slow but a few."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


# Two binary latents in a plate; every quantity by enumeration

BINARY_DATA = jnp.array([0.0, 1.0, 1.0])
BINARY_THETA = {"p1": jnp.array(0.3), "t2": jnp.array([-0.4, 0.9]), "tx": jnp.array([[-1.5, 0.2], [0.7, 1.8]])}
BINARY_PHI = {"a": jnp.array([0.4, -0.8]), "b": jnp.array([[0.3, -1.1], [0.9, 0.5]])}


def binary_model(x):
    p1 = numpyro.param("p1", 0.3, constraint=dist.constraints.unit_interval)
    t2 = numpyro.param("t2", BINARY_THETA["t2"])
    tx = numpyro.param("tx", BINARY_THETA["tx"])
    with numpyro.plate("data", len(x)):
        z1 = numpyro.sample("z1", dist.Bernoulli(p1))
        z2 = numpyro.sample("z2", dist.Bernoulli(logits=t2[z1]))
        numpyro.sample("x", dist.Bernoulli(logits=tx[z1, z2]), obs=x)


def binary_guide(x):
    a, b = numpyro.param("a", BINARY_PHI["a"]), numpyro.param("b", BINARY_PHI["b"])
    x = x.astype(int)
    with numpyro.plate("data", len(x)):
        z1 = numpyro.sample("z1", dist.Bernoulli(logits=a[x]))
        numpyro.sample("z2", dist.Bernoulli(logits=b[x, z1]))


def log_bernoulli(logit, value):
    return jnp.where(value == 1, jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit))


BINARY_STATES = jnp.array(list(itertools.product([0, 1], repeat=2)))  # (4, 2): all (z1, z2)


def binary_log_p(theta, x):
    """log p(z, x) of one datum for each of the four states."""
    z1, z2 = BINARY_STATES.T
    log_p1 = jnp.where(z1 == 1, jnp.log(theta["p1"]), jnp.log1p(-theta["p1"]))
    return log_p1 + log_bernoulli(theta["t2"][z1], z2) + log_bernoulli(theta["tx"][z1, z2], x)


def binary_log_q(phi, x):
    """log q(z | x) of one datum for each of the four states."""
    z1, z2 = BINARY_STATES.T
    x = x.astype(int)
    return log_bernoulli(phi["a"][x], z1) + log_bernoulli(phi["b"][x, z1], z2)


# Two dependent Gaussian latents, with guides of every kind that once leaked gradients

GAUSSIAN_X = 1.3


def gaussian_model(x):
    z1 = numpyro.sample("z1", dist.Normal(numpyro.param("mu", 0.2), 1.0))
    z2 = numpyro.sample("z2", dist.Normal(z1, 1.0))
    numpyro.sample("x", dist.Normal(z2, 1.0), obs=x)


def gaussian_guide(x):
    z1 = numpyro.sample("z1", dist.Normal(numpyro.param("a", 0.5), 1.0))
    numpyro.sample("z2", dist.Normal(numpyro.param("c", 0.7) * z1, 1.0))


def transformed_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    affine = dist.transforms.AffineTransform
    z1 = numpyro.sample("z1", dist.TransformedDistribution(dist.Normal(0.0, 1.0), affine(a, 1.0)))
    numpyro.sample("z2", dist.TransformedDistribution(dist.Normal(0.0, 1.0), affine(c * z1, 1.0)))


def gaussian_log_prior(theta, z, x):
    return norm.logpdf(z["z1"], theta["mu"]) + norm.logpdf(z["z2"], z["z1"])


def gaussian_log_p(theta, z, x):
    return gaussian_log_prior(theta, z, x) + norm.logpdf(x, z["z2"])


def gaussian_log_q(phi, z, x):
    return norm.logpdf(z["z1"], phi["a"]) + norm.logpdf(z["z2"], phi["c"] * z["z1"])


SCAN_X = jnp.array([0.4, -0.3, 1.1, 0.6])


def scan_model(x, observed=True):
    mu = numpyro.param("mu", 0.2)

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(0.8 * z + mu, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x if observed else None)
        return z, None

    scan(step, 0.0, x)


def scan_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(c * z + a * x, 0.7))
        return z, None

    scan(step, 0.0, x)


def _previous(z):
    return jnp.concatenate([jnp.zeros_like(z[:, :1]), z[:, :-1]], axis=1)


def scan_log_prior(theta, z, x):
    return norm.logpdf(z["z"], 0.8 * _previous(z["z"]) + theta["mu"]).sum(axis=1)


def scan_log_p(theta, z, x):
    return scan_log_prior(theta, z, x) + norm.logpdf(x[None], z["z"], 0.5).sum(axis=1)


def scan_log_q(phi, z, x):
    z = z["z"]
    return norm.logpdf(z, phi["c"] * _previous(z) + phi["a"] * x[None], 0.7).sum(axis=1)


def cond_model(x):
    mu = numpyro.param("mu", 0.2)
    branch = numpyro.sample("branch", dist.Bernoulli(0.4))
    high = lambda _: numpyro.sample("z", dist.Normal(2.0 + mu, 1.0))
    low = lambda _: numpyro.sample("z", dist.Normal(-1.0, 0.5))
    z = cond(branch == 1, high, low, None)
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def cond_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    branch = numpyro.sample("branch", dist.Bernoulli(logits=a))
    high = lambda _: numpyro.sample("z", dist.Normal(c * x + a, 1.0))
    low = lambda _: numpyro.sample("z", dist.Normal(c, 0.5))
    cond(branch == 1, high, low, None)


def cond_log_prior(theta, z, x):
    high = z["branch"] == 1
    log_branch = jnp.where(high, jnp.log(0.4), jnp.log(0.6))
    return log_branch + norm.logpdf(z["z"], jnp.where(high, 2.0 + theta["mu"], -1.0), jnp.where(high, 1.0, 0.5))


def cond_log_p(theta, z, x):
    return cond_log_prior(theta, z, x) + norm.logpdf(x, z["z"])


def cond_log_q(phi, z, x):
    high = z["branch"] == 1
    loc = jnp.where(high, phi["c"] * x + phi["a"], phi["c"])
    return log_bernoulli(phi["a"], z["branch"]) + norm.logpdf(z["z"], loc, jnp.where(high, 1.0, 0.5))


def reversed_guide(x):
    """Runs backward in time, as a smoother does: z at t depends on z at t + 1."""
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(c * z + a * x, 0.7))
        return z, None

    scan(step, 0.0, x, reverse=True)


def reversed_log_q(phi, z, x):
    z = z["z"]
    following = jnp.concatenate([z[:, 1:], jnp.zeros_like(z[:, :1])], axis=1)
    return norm.logpdf(z, phi["c"] * following + phi["a"] * x[None], 0.7).sum(axis=1)


def switching_model(x):
    """A cond within a scan."""
    mu = numpyro.param("mu", 0.2)

    def step(z, x):
        high = lambda z: numpyro.sample("z", dist.Normal(z + mu, 1.0))
        low = lambda z: numpyro.sample("z", dist.Normal(-z, 0.5))
        z = cond(z > 0, high, low, z)
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
        return z, None

    scan(step, 0.1, x)


def switching_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)

    def step(z, x):
        high = lambda z: numpyro.sample("z", dist.Normal(c * z + a * x, 1.0))
        low = lambda z: numpyro.sample("z", dist.Normal(a, 0.5))
        return cond(z > 0, high, low, z), None

    scan(step, 0.1, x)


def _switching(z):
    previous = jnp.concatenate([jnp.full_like(z[:, :1], 0.1), z[:, :-1]], axis=1)
    return previous, previous > 0, jnp.where(previous > 0, 1.0, 0.5)


def switching_log_prior(theta, z, x):
    previous, high, scale = _switching(z["z"])
    return norm.logpdf(z["z"], jnp.where(high, previous + theta["mu"], -previous), scale).sum(axis=1)


def switching_log_p(theta, z, x):
    return switching_log_prior(theta, z, x) + norm.logpdf(x[None], z["z"], 0.5).sum(axis=1)


def switching_log_q(phi, z, x):
    previous, high, scale = _switching(z["z"])
    loc = jnp.where(high, phi["c"] * previous + phi["a"] * x[None], phi["a"])
    return norm.logpdf(z["z"], loc, scale).sum(axis=1)


# One program for each way in which sites, plates and scales can be arranged


def one_model(x):
    z = numpyro.sample("z", dist.Normal(numpyro.param("mu", 0.2), 1.0))
    numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def one_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    numpyro.sample("z", dist.Normal(a + c * x, 0.8))


def one_log_prior(theta, z, x):
    return norm.logpdf(z["z"], theta["mu"])


def one_log_p(theta, z, x):
    return one_log_prior(theta, z, x) + norm.logpdf(x, z["z"], 0.5)


def one_log_q(phi, z, x):
    return norm.logpdf(z["z"], phi["a"] + phi["c"] * x, 0.8)


PLATE_X = jnp.array([0.4, -0.3, 1.1])


def mixed_model(x):
    """A discrete and a continuous latent for each datum."""
    mu = numpyro.param("mu", 0.2)
    with numpyro.plate("data", len(x)):
        k = numpyro.sample("k", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        z = numpyro.sample("z", dist.Gamma(1.0 + k, jnp.exp(mu)))
        numpyro.sample("x", dist.Normal(k - z, 1.0), obs=x)


def mixed_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    with numpyro.plate("data", len(x)):
        k = numpyro.sample("k", dist.Categorical(logits=jnp.stack([0.0 * x, a * x, c * x], axis=-1)))
        numpyro.sample("z", dist.LogNormal(a * k - c, 1.0))


def _log_gamma(z, shape, rate):
    return shape * jnp.log(rate) - jax.scipy.special.gammaln(shape) + (shape - 1) * jnp.log(z) - rate * z


def mixed_log_prior(theta, z, x):
    log_k = jnp.log(jnp.array([0.2, 0.5, 0.3]))[z["k"]]
    return log_k + _log_gamma(z["z"], 1.0 + z["k"], jnp.exp(theta["mu"]))


def mixed_log_p(theta, z, x):
    return mixed_log_prior(theta, z, x) + norm.logpdf(x[None], z["k"] - z["z"])


def mixed_log_q(phi, z, x):
    logits = jax.nn.log_softmax(jnp.stack([0.0 * x, phi["a"] * x, phi["c"] * x], axis=-1))
    log_k = jnp.take_along_axis(logits[None], z["k"][..., None], axis=-1)[..., 0]
    return log_k + norm.logpdf(jnp.log(z["z"]), phi["a"] * z["k"] - phi["c"]) - jnp.log(z["z"])


def hierarchical_model(x):
    """A global latent and one for each datum: a single unit."""
    top = numpyro.sample("top", dist.Normal(numpyro.param("mu", 0.2), 1.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(top, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def hierarchical_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    top = numpyro.sample("top", dist.Normal(a, 0.9))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(c * x + 0.2 * top, 0.6))


def hierarchical_log_prior(theta, z, x):
    return norm.logpdf(z["top"], theta["mu"]) + norm.logpdf(z["z"], z["top"][:, None]).sum(axis=1)


def hierarchical_log_p(theta, z, x):
    return hierarchical_log_prior(theta, z, x) + norm.logpdf(x[None], z["z"], 0.5).sum(axis=1)


def hierarchical_log_q(phi, z, x):
    log_z = norm.logpdf(z["z"], phi["c"] * x[None] + 0.2 * z["top"][:, None], 0.6)
    return norm.logpdf(z["top"], phi["a"], 0.9) + log_z.sum(axis=1)


NESTED_X = jnp.array([[0.4, -0.3, 1.1], [0.0, 0.9, -0.7]])


def nested_model(x):
    """The inner plate's sites belong to the units of the outer one."""
    mu = numpyro.param("mu", 0.2)
    with numpyro.plate("rows", x.shape[0], dim=-2):
        row = numpyro.sample("row", dist.Normal(mu, 1.0))
        with numpyro.plate("columns", x.shape[1], dim=-1):
            z = numpyro.sample("z", dist.Normal(row, 1.0))
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def nested_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    with numpyro.plate("rows", x.shape[0], dim=-2):
        row = numpyro.sample("row", dist.Normal(a * x.mean(axis=1, keepdims=True), 0.9))
        with numpyro.plate("columns", x.shape[1], dim=-1):
            numpyro.sample("z", dist.Normal(c * x + 0.2 * row, 0.6))


def nested_log_prior(theta, z, x):
    return norm.logpdf(z["row"], theta["mu"])[..., 0] + norm.logpdf(z["z"], z["row"]).sum(axis=-1)


def nested_log_p(theta, z, x):
    return nested_log_prior(theta, z, x) + norm.logpdf(x[None], z["z"], 0.5).sum(axis=-1)


def nested_log_q(phi, z, x):
    log_row = norm.logpdf(z["row"], phi["a"] * x.mean(axis=1, keepdims=True)[None], 0.9)[..., 0]
    return log_row + norm.logpdf(z["z"], phi["c"] * x[None] + 0.2 * z["row"], 0.6).sum(axis=-1)


def sequential_model(x):
    """Two plates one after the other, both at dim -1, of different sizes: a single unit."""
    mu = numpyro.param("mu", 0.2)
    with numpyro.plate("few", 2):
        few = numpyro.sample("few_z", dist.Normal(mu, 1.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(few.sum(), 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def sequential_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    with numpyro.plate("few", 2):
        numpyro.sample("few_z", dist.Normal(a * x[:2], 0.9))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(c * x, 0.6))


def sequential_log_prior(theta, z, x):
    few = norm.logpdf(z["few_z"], theta["mu"]).sum(axis=1)
    return few + norm.logpdf(z["z"], z["few_z"].sum(axis=1, keepdims=True)).sum(axis=1)


def sequential_log_p(theta, z, x):
    return sequential_log_prior(theta, z, x) + norm.logpdf(x[None], z["z"], 0.5).sum(axis=1)


def sequential_log_q(phi, z, x):
    few = norm.logpdf(z["few_z"], phi["a"] * x[None, :2], 0.9).sum(axis=1)
    return few + norm.logpdf(z["z"], phi["c"] * x[None], 0.6).sum(axis=1)


def minibatch(program):
    """A program of single data, for a minibatch out of twelve."""

    def wrapped(x):
        with numpyro.plate("data", 12, subsample_size=len(x)):
            program(x)

    return wrapped


def plate_log_prior(theta, z, x):
    return one_log_prior(theta, z, x[None])


def plate_log_p(theta, z, x):
    return one_log_p(theta, z, x[None])


def plate_log_q(phi, z, x):
    return one_log_q(phi, z, x[None])


MASK = jnp.array([True, False, True])


def masked_model(x):
    mu = numpyro.param("mu", 0.2)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        with numpyro.handlers.mask(mask=MASK):
            y = numpyro.sample("y", dist.Normal(z, 1.0))
            numpyro.sample("x", dist.Normal(y, 0.5), obs=x)


def masked_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(a, 0.8))
        with numpyro.handlers.mask(mask=MASK):
            numpyro.sample("y", dist.Normal(c * x + 0.1 * z, 0.6))


def masked_log_prior(theta, z, x):
    return norm.logpdf(z["z"], theta["mu"]) + jnp.where(MASK[None], norm.logpdf(z["y"], z["z"]), 0.0)


def masked_log_p(theta, z, x):
    return masked_log_prior(theta, z, x) + jnp.where(MASK[None], norm.logpdf(x[None], z["y"], 0.5), 0.0)


def masked_log_q(phi, z, x):
    y = norm.logpdf(z["y"], phi["c"] * x[None] + 0.1 * z["z"], 0.6)
    return norm.logpdf(z["z"], phi["a"], 0.8) + jnp.where(MASK[None], y, 0.0)


def scaled_model(x):
    """Tempered: the latent's log density counts twice, that of the data half."""
    mu = numpyro.param("mu", 0.2)
    with numpyro.plate("data", len(x)):
        with numpyro.handlers.scale(scale=2.0):
            z = numpyro.sample("z", dist.Normal(mu, 1.0))
        with numpyro.handlers.scale(scale=0.5):
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def scaled_log_p(theta, z, x):
    return 2.0 * norm.logpdf(z["z"], theta["mu"]) + 0.5 * norm.logpdf(x[None], z["z"], 0.5)


def plate_guide(x):
    with numpyro.plate("data", len(x)):
        one_guide(x)


def auxiliary_model(x):
    """Of the guide's auxiliary site it has a density given the latent."""
    z = numpyro.sample("z", dist.Normal(numpyro.param("mu", 0.2), 1.0))
    numpyro.sample("u", dist.Bernoulli(logits=z))
    numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def auxiliary_guide(x):
    """A mixture of two Gaussians, which with u as a site needs no density of its own."""
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    u = numpyro.sample("u", dist.Bernoulli(logits=a))
    numpyro.sample("z", dist.Normal(c * x + u, 0.8))


def auxiliary_log_prior(theta, z, x):
    return norm.logpdf(z["z"], theta["mu"]) + log_bernoulli(z["z"], z["u"])


def auxiliary_log_p(theta, z, x):
    return auxiliary_log_prior(theta, z, x) + norm.logpdf(x, z["z"], 0.5)


def auxiliary_log_q(phi, z, x):
    return log_bernoulli(phi["a"], z["u"]) + norm.logpdf(z["z"], phi["c"] * x + z["u"], 0.8)


class ByHand(NamedTuple):
    """Two programs, their data, and their log densities of ``(particles, *units)`` draws written out by hand.

    Sums over units are multiplied by `scale`.
    """

    model: Callable
    guide: Callable
    x: Any
    log_p: Callable
    log_q: Callable
    log_prior: Callable
    scale: float = 1.0


_gaussian = gaussian_log_p, gaussian_log_q, gaussian_log_prior
_plate = plate_log_p, plate_log_q, plate_log_prior
BY_HAND = {
    "one latent": ByHand(one_model, one_guide, GAUSSIAN_X, one_log_p, one_log_q, one_log_prior),
    "two latents": ByHand(gaussian_model, gaussian_guide, GAUSSIAN_X, *_gaussian),
    "transformed": ByHand(gaussian_model, transformed_guide, GAUSSIAN_X, *_gaussian),
    "mixed": ByHand(mixed_model, mixed_guide, PLATE_X, mixed_log_p, mixed_log_q, mixed_log_prior),
    "hierarchical": ByHand(
        hierarchical_model, hierarchical_guide, PLATE_X, hierarchical_log_p, hierarchical_log_q, hierarchical_log_prior
    ),
    "nested plates": ByHand(nested_model, nested_guide, NESTED_X, nested_log_p, nested_log_q, nested_log_prior),
    "sequential plates": ByHand(
        sequential_model, sequential_guide, PLATE_X, sequential_log_p, sequential_log_q, sequential_log_prior
    ),
    "subsampled": ByHand(minibatch(one_model), minibatch(one_guide), PLATE_X, *_plate, scale=4.0),
    "masked": ByHand(masked_model, masked_guide, PLATE_X, masked_log_p, masked_log_q, masked_log_prior),
    "scaled": ByHand(scaled_model, plate_guide, PLATE_X, scaled_log_p, plate_log_q, plate_log_prior),
    "auxiliary": ByHand(
        auxiliary_model, auxiliary_guide, GAUSSIAN_X, auxiliary_log_p, auxiliary_log_q, auxiliary_log_prior
    ),
    "scan": ByHand(scan_model, scan_guide, SCAN_X, scan_log_p, scan_log_q, scan_log_prior),
    "reversed scan": ByHand(scan_model, reversed_guide, SCAN_X, scan_log_p, reversed_log_q, scan_log_prior),
    "cond in scan": ByHand(
        switching_model, switching_guide, SCAN_X, switching_log_p, switching_log_q, switching_log_prior
    ),
    "cond": ByHand(cond_model, cond_guide, GAUSSIAN_X, cond_log_p, cond_log_q, cond_log_prior),
}
BY_HAND_THETA = {"mu": jnp.array(0.2)}
BY_HAND_PHI = {"a": jnp.array(0.5), "c": jnp.array(0.7)}
